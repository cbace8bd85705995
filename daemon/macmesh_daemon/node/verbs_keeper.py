"""Remembers what became of this machine's RDMA devices: quarantined peers, and how often links were set up."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from typing import TYPE_CHECKING

from macmesh_daemon.files import write_durably
from macmesh_daemon.logs import get_logger
from macmesh_rdma.quarantine_file import LocalQuarantineFileError, add_entry, read_entries
from macmesh_rdma.verbs import boot_counts
from macmesh_rdma.verbs.boot_counts import BootCounts, counts_text, read_counts
from macmesh_rdma.verbs.devices import may_have_devices, verbs_facts
from macmesh_rdma.verbs.facts import VerbsFacts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from macmesh.v1 import lane_pb2

QUARANTINE_FILE_NAME = "verbs-quarantine.json"

_log = get_logger(part="verbs")


class VerbsKeeper:
    """What a node tells of its verbs library, with what was learnt here.

    Args:
        folder: of the quarantine and of the counts.
        library: file of the verbs library; empty: the system's.
        setups_per_boot: the bound.
        wanted: whether devices are asked for though nothing hints at them.
        system_tells: whether what is known beside the library changes where its answer does.
        ask: asks the library; replaced in tests.
        read_boot_id: names this start of the machine; replaced in tests.
        unix_now: the time of a quarantine, in seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        *,
        library: str = "",
        setups_per_boot: int = 20,
        wanted: bool = False,
        system_tells: bool = sys.platform == "darwin",
        ask: Callable[[str], Awaitable[VerbsFacts]] = verbs_facts,
        read_boot_id: Callable[[], Awaitable[str]] = boot_counts.boot_id,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self.library = library
        """As given."""
        self.on_change: Callable[[], None] = _nothing
        """Called where what is told has changed here."""
        self._quarantine = folder / QUARANTINE_FILE_NAME
        self._counts_path = folder / boot_counts.FILE_NAME
        self._bound = setups_per_boot
        self._wanted = wanted
        self._system_tells = system_tells
        self._ask = ask
        self._read_boot_id = read_boot_id
        self._unix_now = unix_now
        self._counts: BootCounts | None = None
        self._writing = asyncio.Lock()
        self._known: tuple[str, VerbsFacts] | None = None
        self._quarantined: dict[str, str] = {}

    async def facts(self, system: str = "") -> VerbsFacts:
        """What to tell the others now. Never fails.

        Args:
            system: what else is known of the devices. Where the system tells all, the library is asked again only
                where this changes, or the answer was a refusal.
        """
        if not self._wanted and not await asyncio.to_thread(may_have_devices, self.library):
            return VerbsFacts()
        known = self._known
        if known is None or known[0] != system or known[1].refused or not self._system_tells:
            known = self._known = system, await self._ask(self.library)
        facts = known[1]
        async with self._writing:
            counts = await self._read_counts()
            self._quarantined, broken = await asyncio.to_thread(self._read_quarantine)
        facts = dataclasses.replace(facts, quarantined=tuple(sorted(self._quarantined.items())))
        return facts.with_refusal(broken).with_refusal(self._why_restart(counts))

    async def note(self, use: lane_pb2.RdmaUse, node_ids: Sequence[str]) -> None:
        """Takes in what a worker did.

        Args:
            use: as it told.
            node_ids: of the plan's stages, head first.
        """
        faults = {node_ids[f.peer_stage]: f.reason for f in use.faults if f.peer_stage < len(node_ids)}
        async with self._writing:
            self._quarantined = {**faults, **self._quarantined}
            before = await self._read_counts()
            counts = before.plus(setups=use.setups, made=use.queue_pairs_made, freed=use.queue_pairs_freed)
            self._counts = counts
            try:
                if counts != before:
                    await asyncio.to_thread(write_durably, self._counts_path, counts_text(counts))
                for node_id, reason in faults.items():
                    _log.error("links over RDMA devices put into quarantine", node=node_id, reason=reason)
                    await asyncio.to_thread(add_entry, self._quarantine, node_id, reason, self._unix_now())
            except OSError as error:
                _log.error("what RDMA devices did could not be kept", error=str(error))
        if faults or self._why_restart(counts) != self._why_restart(before):
            self.on_change()

    def health(self) -> tuple[str, ...]:
        """What a person should know."""
        lines = [
            f"links over RDMA devices to node {peer[:8]} are in quarantine: {reason} "
            f"(`daemonctl rdma lift {peer[:8]}` on this machine lifts it)"
            for peer, reason in sorted(self._quarantined.items())
        ]
        if self._counts is not None and (why := self._why_restart(self._counts)):
            lines.append(why)
        return tuple(lines)

    async def _read_counts(self) -> BootCounts:
        if self._counts is None:
            name = await self._read_boot_id()
            # Counts of a start that has no name would never end.
            self._counts = (
                BootCounts(name)
                if name == boot_counts.UNKNOWN
                else await asyncio.to_thread(read_counts, self._counts_path, name)
            )
        return self._counts

    def _read_quarantine(self) -> tuple[dict[str, str], str]:
        """By node id, why; and why nothing of it can be known."""
        try:
            entries = read_entries(self._quarantine)
        except LocalQuarantineFileError as error:
            return {}, f"{self._quarantine} cannot be read ({error}); `daemonctl rdma lift` removes it"
        except OSError as error:
            return {}, f"{self._quarantine} cannot be read: {error}"
        return {node_id: str(entry["reason"]) for node_id, entry in entries.items()}, ""

    def _why_restart(self, counts: BootCounts) -> str:
        if counts.setups < self._bound:
            return ""
        return (
            f"needs reboot: links over RDMA devices were set up {counts.setups} times since this machine was started, "
            f"with {counts.queue_pairs_made} queue pairs, of which {counts.queue_pairs_freed} were freed; "
            f"the bound is {self._bound} set-ups"
        )


def _nothing() -> None:
    pass
