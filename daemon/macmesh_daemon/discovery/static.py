"""Candidates from the configuration."""

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from macmesh_daemon.clock import Clock, SystemClock, sleep_or_event
from macmesh_daemon.config import split_address
from macmesh_daemon.discovery.base import Candidate, CandidateCallback, Discovery, Source


class StaticDiscovery(Discovery):
    """Reports each configured ``host:port``, again and again: nobody else announces them.

    Works without multicast. A seed's node id is not known; whoever dials finds it out.
    """

    source: ClassVar[Source] = "static"

    def __init__(
        self, seeds: Sequence[str], *, interval_seconds: float = 5.0, clock: Clock | None = None
    ) -> None:
        """Check the seeds.

        Raises:
            ValueError: A seed is not of the form ``host:port``.
        """
        for seed in seeds:
            split_address(seed)
        self._candidates = tuple(Candidate(None, (seed,), self.source) for seed in dict.fromkeys(seeds))
        self._interval_seconds = interval_seconds
        self._clock: Clock = clock or SystemClock()
        self._wake = asyncio.Event()

    async def run(self, found: CandidateCallback) -> None:
        """See ``Discovery.run``."""
        while True:
            for candidate in self._candidates:
                found(candidate)
            await sleep_or_event(self._clock, self._interval_seconds, self._wake)

    def refresh(self) -> None:
        """See ``Discovery.refresh``."""
        self._wake.set()

    def health(self) -> tuple[str, ...]:
        """See ``Discovery.health``: a list cannot be ill."""
        return ()
