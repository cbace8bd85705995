"""What the parts of the machine share: the durable state, the clock of this step, and the list of effects."""

import dataclasses
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .effects import Announce, Persist, Reply, Send
from .events import RequestReceived, ResponseReceived

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .effects import Effect
    from .messages import NodeFacts, Request, Response
    from .settings import ClusterSettings
    from .state import PersistentState


class Context:
    """Durable state, time, and effects of one node.

    A node talks to itself as to any other: a request to itself goes into `inbox` and never leaves the
    machine, and so does the reply. Effects are in the order in which they were decided, so whatever follows
    from a `Persist` stands behind it.
    """

    def __init__(
        self,
        *,
        node_id: str,
        boot_nonce: int,
        facts: "NodeFacts",
        addresses: tuple[str, ...],
        state: "PersistentState",
        settings: "ClusterSettings",
        rng: "random.Random",
        key_source: "Callable[[], bytes]",
        now: float,
    ) -> None:
        self.node_id = node_id
        self.boot_nonce = boot_nonce
        self.facts = facts
        self.addresses = addresses
        self.state = state
        self.settings = settings
        self.rng = rng
        self.key_source = key_source
        self.now = now
        self.health_score = 0
        self.is_leaving = False
        self.step_number = 0
        self.inbox: deque[RequestReceived | ResponseReceived] = deque()
        self._effects: list[Effect] = []
        self._own_request_id = 0
        self._planner_request_id = 0

    def begin(self, now: float) -> None:
        """Start a step. Time that seems to go back stands still."""
        if now > self.now:  # noqa: PLR1730  the path of every event
            self.now = now
        self.step_number += 1

    def take_effects(self) -> "list[Effect]":
        """Give the effects decided since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def emit(self, effect: "Effect") -> None:
        """Decide an effect."""
        self._effects.append(effect)

    def next_request_id(self) -> int:
        """Number an ask of the planner; no other of this machine ever has the same number."""
        self._planner_request_id += 1
        return self._planner_request_id

    def persist(self, **changes: Any) -> None:
        """Change the durable state, ahead of every effect decided after this."""
        self.state = dataclasses.replace(self.state, **changes)
        if self._effects and isinstance(self._effects[-1], Persist):
            self._effects.pop()
        self._effects.append(Persist(self.state))

    def remember(self, **changes: Any) -> None:
        """Change the state without haste: it is stored with the next `persist`. For what may be forgotten."""
        self.state = dataclasses.replace(self.state, **changes)

    def send(self, peer: str, message: "Request", deadline_seconds: float) -> None:
        """Call a peer, or this node itself."""
        if peer == self.node_id:
            self._own_request_id -= 1
            self.inbox.append(RequestReceived(self._own_request_id, self.node_id, message))
        else:
            self._effects.append(Send(peer, message, deadline_seconds))

    def reply(self, request_id: int, message: "Response") -> None:
        """Answer a request; negative ids are this node's own."""
        if request_id < 0:
            self.inbox.append(ResponseReceived(self.node_id, message, 0.0))
        else:
            self._effects.append(Reply(request_id, message))

    def announce(self, event: str, **facts: object) -> None:
        """Tell logs and watchers of a decision."""
        self._effects.append(Announce(event, MappingProxyType(facts)))
