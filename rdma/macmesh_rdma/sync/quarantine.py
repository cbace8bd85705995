"""Remembers on disk where ``fast`` synchronisation has hung, so that it is not tried there again.

One file for each node (`quarantine_file`). A key names system build, chip and mlx version (`SyncPlatform.key`), so an
update of any of them ends the quarantine; removing the file ends it too. A file that cannot be read counts as a
quarantine: ``fast`` gains time only, and a hang may cost a restart of the machine.
"""

from pathlib import Path

from macmesh_rdma.quarantine_file import LocalQuarantineFileError, add_entry, read_entries

__all__ = [
    "FILE_NAME",
    "LocalQuarantineFileError",
    "add_to_quarantine",
    "clear_quarantine",
    "quarantine_reason",
]

FILE_NAME = "sync-quarantine.json"


def quarantine_reason(path: Path, key: str) -> str:
    """Why ``fast`` is in quarantine for a key; empty where it is not."""
    try:
        entry = read_entries(path).get(key)
    except OSError as error:
        return f"{path} cannot be read ({error}); remove it to try fast again"
    return "" if entry is None else str(entry["reason"])


def add_to_quarantine(path: Path, key: str, reason: str, unix_seconds: float) -> None:
    """Puts a key into quarantine; the first reason of a key stays. A file that cannot be read is replaced.

    Blocks: call it through a thread from asyncio.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    add_entry(path, key, reason, unix_seconds)


def clear_quarantine(path: Path) -> None:
    """Ends every quarantine.

    Raises:
        OSError: the file cannot be removed.
    """
    path.unlink(missing_ok=True)
