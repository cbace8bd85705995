"""Keeps an eye on this node's RDMA devices: cables come and go while the node runs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from macmesh_daemon.logs import get_logger
from macmesh_rdma.jaccl.facts import RdmaFacts, rdma_facts, run_command

if TYPE_CHECKING:
    from macmesh_daemon.clock import Clock
    from macmesh_daemon.node.verbs_keeper import VerbsKeeper

RdmaReader = Callable[[], Awaitable[RdmaFacts]]
"""Asks the running system; never fails, and takes a bounded time."""

FIRST_DEADLINE_SECONDS = 5.0
"""A node that starts waits so long for what it can tell at once: the first plan should know of the cables."""
INTERVAL_SECONDS = 60.0

_log = get_logger(part="rdma")


def system_reader(*, macos_build: str, mlx_version: str, verbs: VerbsKeeper | None = None) -> RdmaReader:
    """Reads this machine; on anything but macOS the answer is that there is no RDMA over Thunderbolt.

    Args:
        macos_build: Of this machine.
        mlx_version: Of this machine.
        verbs: Tells of its verbs library.
    """

    async def read() -> RdmaFacts:
        if sys.platform == "darwin" and not macos_build:
            return RdmaFacts(mlx_version=mlx_version, refused="the build of macOS cannot be read")
        facts = await rdma_facts(run_command, macos_build=macos_build, mlx_version=mlx_version)
        # Where the system has no RDMA, its library has no devices.
        if verbs is None or (sys.platform == "darwin" and facts.refused and not verbs.library):
            return facts
        return dataclasses.replace(facts, verbs=await verbs.facts(_text(facts)))

    return read


class RdmaWatch:
    """Reads the devices at the start and then every minute.

    Args:
        read: Asks the running system.
        changes: Whether there can be another answer later, as on macOS.
        first_deadline_seconds: How long a node that starts waits; None: `FIRST_DEADLINE_SECONDS`.
    """

    def __init__(
        self,
        read: RdmaReader,
        *,
        changes: bool = sys.platform == "darwin",
        first_deadline_seconds: float | None = None,
    ) -> None:
        self._read = read
        self._changes = changes
        self._first_deadline_seconds = first_deadline_seconds
        self._known = ""
        self._tell: Callable[[str], None] | None = None

    async def first(self) -> str:
        """What is found in time, as JSON; empty where it takes longer."""
        seconds = self._first_deadline_seconds or FIRST_DEADLINE_SECONDS
        try:
            async with asyncio.timeout(seconds):
                self._known = _text(await self._read())
        except TimeoutError:
            _log.warning("RDMA devices not found out yet", seconds=seconds)
        return self._known

    async def run(self, clock: Clock, tell: Callable[[str], None]) -> None:
        """Tells every change, as JSON, until cancelled; returns where there can be none."""
        self._tell = tell
        while self._changes or not self._known:
            if self._known:
                await clock.sleep(INTERVAL_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Reads now, and tells where the answer is another one; does nothing before `run`."""
        if self._tell is None:
            return
        found = _text(await self._read())
        if found != self._known:
            self._known = found
            _log.info("RDMA devices changed", devices=found)
            self._tell(found)


def _text(facts: RdmaFacts) -> str:
    return json.dumps(facts.to_json(), sort_keys=True, separators=(",", ":"))
