"""Keeps an eye on this node's RDMA devices: cables come and go while the node runs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from macmesh_daemon.logs import get_logger
from macmesh_rdma.jaccl.facts import RdmaFacts, rdma_facts, run_command

if TYPE_CHECKING:
    from macmesh_daemon.clock import Clock

RdmaReader = Callable[[], Awaitable[RdmaFacts]]
"""Asks the running system; never fails, and takes a bounded time."""

FIRST_DEADLINE_SECONDS = 5.0
"""A node that starts waits so long for what it can tell at once: the first plan should know of the cables."""
INTERVAL_SECONDS = 60.0

_log = get_logger(part="rdma")


def system_reader(*, macos_build: str, mlx_version: str) -> RdmaReader:
    """Reads this machine; on anything but macOS the answer is that there is no RDMA over Thunderbolt."""

    async def read() -> RdmaFacts:
        if sys.platform == "darwin" and not macos_build:
            return RdmaFacts(mlx_version=mlx_version, refused="the build of macOS cannot be read")
        return await rdma_facts(run_command, macos_build=macos_build, mlx_version=mlx_version)

    return read


class RdmaWatch:
    """Reads the devices at the start and then every minute.

    Args:
        read: Asks the running system.
        changes: Whether there can be another answer later, as on macOS.
    """

    def __init__(self, read: RdmaReader, *, changes: bool = sys.platform == "darwin") -> None:
        self._read = read
        self._changes = changes
        self._known = ""

    async def first(self) -> str:
        """What is found within `FIRST_DEADLINE_SECONDS`, as JSON; empty where it takes longer."""
        try:
            async with asyncio.timeout(FIRST_DEADLINE_SECONDS):
                self._known = _text(await self._read())
        except TimeoutError:
            _log.warning("RDMA devices not found out yet", seconds=FIRST_DEADLINE_SECONDS)
        return self._known

    async def run(self, clock: Clock, tell: Callable[[str], None]) -> None:
        """Tells every change, as JSON, until cancelled; returns where there can be none."""
        while self._changes or not self._known:
            if self._known:
                await clock.sleep(INTERVAL_SECONDS)
            found = _text(await self._read())
            if found != self._known:
                self._known = found
                _log.info("RDMA devices changed", devices=found)
                tell(found)


def _text(facts: RdmaFacts) -> str:
    return json.dumps(facts.to_json(), sort_keys=True, separators=(",", ":"))
