"""Decides how this node's workers synchronise, and remembers where ``fast`` has hung."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import plistlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args
from xml.parsers.expat import ExpatError

from macmesh_daemon.files import write_durably
from macmesh_daemon.logs import get_logger
from macmesh_rdma.sync.mode import (
    HopResult,
    SyncComparison,
    SyncDecision,
    SyncMode,
    SyncPlatform,
    decide,
    needs_self_test,
)
from macmesh_rdma.sync.quarantine import FILE_NAME, add_to_quarantine, quarantine_reason
from macmesh_rdma.sync.self_test import compare_sync_modes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RESULT_FILE_NAME = "sync-self-test.json"
_SYSTEM_VERSION = Path("/System/Library/CoreServices/SystemVersion.plist")

_log = get_logger(part="sync")


class SyncKeeper:
    """Turns the synchronisation that a plan asks for into that of this node's next worker.

    The self-test runs once for each combination of system, chip and mlx, in the background: a worker that starts
    before it has ended is ``safe``.

    Args:
        folder: of the quarantine and of the self-test's result.
        platform: of this node.
        compare: runs the self-test; replaced in tests.
        unix_now: the time of a quarantine, in seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        platform: SyncPlatform,
        *,
        compare: Callable[[], Awaitable[SyncComparison]] = compare_sync_modes,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self._quarantine = folder / FILE_NAME
        self._result = folder / RESULT_FILE_NAME
        self._platform = platform
        self._unix_now = unix_now
        self._compare = compare
        self._comparison: SyncComparison | None = None
        self._attention = ""

    async def prepare(self, requested: str) -> None:
        """Runs the self-test where a decision would need it and it has not run here before. Never fails."""
        key = self._platform.key
        if not needs_self_test(_mode(requested), self._platform, await self._quarantine_reason()):
            return
        self._comparison = await asyncio.to_thread(read_comparison, self._result, key)
        if self._comparison is not None:
            return
        comparison = await self._compare()
        self._comparison = comparison
        _log.info("sync self-test done", safe=str(comparison.safe), fast=str(comparison.fast))
        if comparison.fast.outcome == "hung":
            await self.note_hang(f"it hung in its self-test: {comparison.fast.detail}")
        elif comparison.safe.outcome == comparison.fast.outcome == "passed":
            try:
                await asyncio.to_thread(write_durably, self._result, comparison_to_json(comparison, key))
            except OSError as error:
                _log.warning("sync self-test not kept", error=str(error))

    async def decide(self, requested: str) -> SyncDecision:
        """The synchronisation of a worker that starts now."""
        decision = decide(
            _mode(requested),
            self._platform,
            quarantine=await self._quarantine_reason(),
            comparison=self._comparison,
        )
        self._attention = decision.reason if decision.attention else ""
        return decision

    async def note_hang(self, reason: str) -> None:
        """Puts ``fast`` into quarantine on this node: a worker hung while it was in force."""
        self._attention = f"fast is in quarantine: {reason}"
        _log.error("fast synchronisation put into quarantine", reason=reason)
        try:
            await asyncio.to_thread(
                add_to_quarantine, self._quarantine, self._platform.key, reason, self._unix_now()
            )
        except OSError as error:
            _log.error("quarantine could not be kept", error=str(error))

    def health(self) -> tuple[str, ...]:
        """What a person should know."""
        if not self._attention:
            return ()
        return (f"synchronisation is safe, as {self._attention} (remove {self._quarantine} to try again)",)

    async def _quarantine_reason(self) -> str:
        return await asyncio.to_thread(quarantine_reason, self._quarantine, self._platform.key)


def sync_platform(
    *, chip: str, mlx_version: str, system: str = sys.platform, version_file: Path = _SYSTEM_VERSION
) -> SyncPlatform:
    """What decides about ``fast`` on this node; reads a small file on macOS."""
    if system != "darwin":
        return SyncPlatform(system, chip=chip, mlx_version=mlx_version)
    try:
        values = plistlib.loads(version_file.read_bytes())
        major = int(str(values["ProductVersion"]).partition(".")[0])
        build = str(values["ProductBuildVersion"])
    except (OSError, ValueError, KeyError, TypeError, ExpatError, plistlib.InvalidFileException):
        major, build = 0, ""
    return SyncPlatform(system, major, chip, build, mlx_version)


def comparison_to_json(comparison: SyncComparison, key: str) -> bytes:
    """A self-test's result as it is kept."""
    return json.dumps({"version": 1, "key": key, **dataclasses.asdict(comparison)}).encode()


def read_comparison(path: Path, key: str) -> SyncComparison | None:
    """The kept result for a key; None where there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
        if value["version"] != 1 or value["key"] != key:
            return None
        return SyncComparison(safe=_hop(value["safe"]), fast=_hop(value["fast"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hop(value: dict[str, object]) -> HopResult:
    outcome, detail = value["outcome"], value["detail"]
    chained_us, evaluated_us = value["chained_us"], value["evaluated_us"]
    if (
        outcome not in {"passed", "hung", "wrong", "failed"}
        or not isinstance(chained_us, int | float)
        or not isinstance(evaluated_us, int | float)
    ):
        raise ValueError(f"{value!r} is no result")
    return HopResult(outcome, float(chained_us), float(evaluated_us), str(detail))


def _mode(requested: str) -> SyncMode:
    """A deployment of another version may ask for what this one does not know: then it is safe."""
    return cast("SyncMode", requested) if requested in get_args(SyncMode) else "safe"
