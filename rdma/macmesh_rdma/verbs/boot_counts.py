"""Counts, for one boot of the machine, how often links over RDMA devices were set up here.

Making and freeing queue pairs again and again degrades Apple's driver until the machine is restarted, so there is a
bound. The file is JSON: ``{"version": 1, "boot_id": ..., "setups": ..., "queue_pairs_made": ..., "queue_pairs_freed":
...}``; that of another boot counts nothing, and so does one that cannot be read.
"""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path

from macmesh_rdma.jaccl.facts import Runner, run_command

FILE_NAME = "verbs-boot-counts.json"
FORMAT_VERSION = 1
UNKNOWN = "unknown"
BOOT_SESSION = ("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
_LINUX_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True)
class BootCounts:
    """What was done since the machine was started.

    Attributes:
        boot_id: Of that start.
        setups: Groups of links that were set up, or tried.
        queue_pairs_made: By all workers that told of it.
        queue_pairs_freed: Likewise; fewer than were made where a worker lives, or ended without freeing them.
    """

    boot_id: str
    setups: int = 0
    queue_pairs_made: int = 0
    queue_pairs_freed: int = 0

    def plus(self, *, setups: int = 0, made: int = 0, freed: int = 0) -> "BootCounts":
        """The counts with so many more."""
        return dataclasses.replace(
            self,
            setups=self.setups + setups,
            queue_pairs_made=self.queue_pairs_made + made,
            queue_pairs_freed=self.queue_pairs_freed + freed,
        )


def read_counts(path: Path, boot_id: str) -> BootCounts:
    """The counts of this boot."""
    try:
        value = json.loads(path.read_bytes())
        if value["version"] != FORMAT_VERSION or value["boot_id"] != boot_id:
            return BootCounts(boot_id)
        return BootCounts(
            boot_id,
            setups=int(value["setups"]),
            queue_pairs_made=int(value["queue_pairs_made"]),
            queue_pairs_freed=int(value["queue_pairs_freed"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return BootCounts(boot_id)


def counts_text(counts: BootCounts) -> bytes:
    """What `read_counts` reads."""
    return json.dumps({"version": FORMAT_VERSION, **dataclasses.asdict(counts)}).encode()


async def boot_id(*, runner: Runner = run_command, platform: str = sys.platform) -> str:
    """Names this start of the machine; `UNKNOWN` where the system does not tell it."""
    try:
        if platform == "darwin":
            return (await runner(BOOT_SESSION)).strip() or UNKNOWN
        return (await asyncio.to_thread(_LINUX_BOOT_ID.read_text, "ascii")).strip() or UNKNOWN
    except (OSError, TimeoutError):
        return UNKNOWN
