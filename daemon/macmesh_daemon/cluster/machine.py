"""The cluster core behind one door."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .effects import Effect
    from .events import Event
    from .messages import NodeFacts
    from .settings import ClusterSettings
    from .state import PersistentState
    from .view import ClusterView


class ClusterMachine:
    """Election, membership and plans of one node, without I/O, clock or randomness of its own.

    Args:
        node_id: This node, from its certificate.
        boot_nonce: Drawn at random at each start of the daemon.
        facts: This node's machine.
        addresses: host:port that others reach this node at, best first.
        persistent: What was stored last; `PersistentState()` on the first start.
        settings: Times and limits.
        rng: For election timeouts; seeded by the caller.
        key_source: Gives 32 fresh secret random bytes at each call: the key of an epoch.
        now: The time, in seconds of a clock that never goes back and counts sleep.
        founder: Whether this node may found the cluster where it has no document.
        bootstrap_expect: Nodes, itself included, that the founder waits for.
    """

    def __init__(
        self,
        *,
        node_id: str,
        boot_nonce: int,
        facts: "NodeFacts",
        addresses: tuple[str, ...],
        persistent: "PersistentState",
        settings: "ClusterSettings",
        rng: "random.Random",
        key_source: "Callable[[], bytes]",
        now: float,
        founder: bool,
        bootstrap_expect: int = 1,
    ) -> None: ...

    def step(self, event: "Event", now: float) -> "list[Effect]":
        """Take one event and return what to do; the only way in."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """When `step(Tick(), now)` is due at the latest; None where only an event can change anything."""
        raise NotImplementedError

    @property
    def view(self) -> "ClusterView":
        """A picture of the machine as it is now."""
        raise NotImplementedError
