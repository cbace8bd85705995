"""What an API node has of its requests: as the daemon's request desk, less tokenizer and sockets."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from macmesh_daemon.requests import Ask, RequestMachine, RequestSettings
from macmesh_daemon.requests import effects as fx
from macmesh_daemon.requests import events as ev
from simulator.node import SimNode

from .tokens import STOP, Model, Truth, Wish

if TYPE_CHECKING:
    from .clients import Connection
    from .heads import Run


class Live:
    """One request at its API node.

    Attributes:
        request_id: As the cluster knows it.
        conn: To its client.
        machine: Its state.
        run: The run that is followed.
        delivered: Every token sent, those that the client brought included.
        end: Its end, once.
        runs: How many were begun.
        fruitless: How many of them since the last token.
        waiting_since: By the node's clock; None while it runs.
        waited_seconds: In earlier waits since the last token.
        is_client_gone: Whether it was told so.
        timer_at: Of the next `Tick`.
    """

    def __init__(
        self,
        node: SimNode,
        conn: "Connection",
        wish: Wish,
        request_id: str,
        digest: str,
        brought: list[int],
        patience_seconds: float,
        now: float,
    ) -> None:
        self.node = node
        self.conn = conn
        self.wish = wish
        self.request_id = request_id
        self.digest = digest
        self.patience_seconds = patience_seconds
        ask = Ask(request_id, wish.prompt, digest, wish.max_tokens, frozenset({STOP}))
        settings = RequestSettings(patience_seconds=patience_seconds)
        self.machine = RequestMachine(ask, now=now, settings=settings, generated=tuple(brought))
        self.truth = Truth(Model(digest, wish, wish.prompt))
        self.delivered = list(brought)
        self.run: Run | None = None
        self.end: fx.End | None = None
        self.runs = self.fruitless = 0
        self.waiting_since: float | None = None
        self.waited_seconds = 0.0
        self.is_client_gone = False
        self.timer_at: float | None = None
        self.paused = ""


@dataclass
class Desk:
    """The requests of one life of a node.

    Attributes:
        boots: Which life.
        live: By id, in the order of their acceptance: that in which they are told of plans.
        seen: What they were told last.
        clock: The latest reading of the node's clock, which never goes back.
    """

    boots: int
    live: dict[str, Live] = field(default_factory=dict)
    seen: ev.PlanSeen | None = None
    clock: float = float("-inf")

    def now(self, node: SimNode, real: float) -> float:
        """The node's clock."""
        self.clock = max(self.clock, node.clock.local(real))
        return self.clock
