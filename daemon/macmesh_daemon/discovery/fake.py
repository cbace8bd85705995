"""Discovery without a network, for tests of what stands on it. Keeps the contract of ``Discovery``."""

import asyncio
from typing import ClassVar

from macmesh_daemon.clock import Clock, SystemClock, sleep_or_event
from macmesh_daemon.discovery.base import Candidate, CandidateCallback, Discovery, Source


class FakeNetwork:
    """A multicast domain in memory. ``cut`` and ``heal`` take nodes off it and put them back."""

    def __init__(self) -> None:
        self._nodes: dict[str, FakeDiscovery] = {}
        self._cut: set[str] = set()

    def cut(self, node_id: str) -> None:
        """Take a node off the network: it neither sees nor is seen. What was found stays found."""
        self._cut.add(node_id)

    def heal(self, node_id: str) -> None:
        """Put a node back; it is seen at the next beat."""
        self._cut.discard(node_id)

    def join(self, node: "FakeDiscovery") -> None:
        """Add a node that began to run, and let all see it."""
        self._nodes[node.node_id] = node
        for other in self._nodes.values():
            other.refresh()

    def leave(self, node: "FakeDiscovery") -> None:
        """Remove a node that stopped."""
        self._nodes.pop(node.node_id, None)

    def visible_to(self, node_id: str) -> tuple["FakeDiscovery", ...]:
        """Return the running nodes that ``node_id`` can see."""
        if node_id in self._cut:
            return ()
        return tuple(node for name, node in self._nodes.items() if name != node_id and name not in self._cut)


class FakeDiscovery(Discovery):
    """One node on a ``FakeNetwork``; it appears to be mDNS."""

    source: ClassVar[Source] = "mdns"

    def __init__(
        self,
        network: FakeNetwork,
        node_id: str,
        addresses: tuple[str, ...],
        *,
        interval_seconds: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self.node_id = node_id
        self.addresses = addresses
        #: Lines that ``health`` returns; tests set it.
        self.problems: tuple[str, ...] = ()
        self._network = network
        self._interval_seconds = interval_seconds
        self._clock: Clock = clock or SystemClock()
        self._wake = asyncio.Event()

    async def run(self, found: CandidateCallback) -> None:
        """See ``Discovery.run``."""
        self._network.join(self)
        try:
            while True:
                for node in self._network.visible_to(self.node_id):
                    found(Candidate(node.node_id, node.addresses, self.source))
                await sleep_or_event(self._clock, self._interval_seconds, self._wake)
        finally:
            self._network.leave(self)

    def refresh(self) -> None:
        """See ``Discovery.refresh``."""
        self._wake.set()

    def health(self) -> tuple[str, ...]:
        """See ``Discovery.health``."""
        return self.problems
