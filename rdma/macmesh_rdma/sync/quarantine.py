"""Remembers on disk where ``fast`` synchronisation has hung, so that it is not tried there again.

One JSON file for each node: ``{"version": 1, "entries": {KEY: {"reason": ..., "unix_seconds": ...}}}``. A key
names system build, chip and mlx version (`SyncPlatform.key`), so an update of any of them ends the quarantine;
removing the file ends it too. A file that cannot be read counts as a quarantine: ``fast`` gains time only, and a
hang may cost a restart of the machine.
"""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

FILE_NAME = "sync-quarantine.json"
FORMAT_VERSION = 1


class LocalQuarantineFileError(OSError):
    """The file is there, but is not what this module writes."""


def quarantine_reason(path: Path, key: str) -> str:
    """Why ``fast`` is in quarantine for a key; empty where it is not."""
    try:
        entry = _read(path).get(key)
    except OSError as error:
        return f"{path} cannot be read ({error}); remove it to try fast again"
    return "" if entry is None else str(entry["reason"])


def add_to_quarantine(path: Path, key: str, reason: str, unix_seconds: float) -> None:
    """Puts a key into quarantine; the first reason of a key stays. A file that cannot be read is replaced.

    Blocks: call it through a thread from asyncio.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    try:
        entries = _read(path)
    except LocalQuarantineFileError:
        entries = {}
    entries.setdefault(key, {"reason": reason, "unix_seconds": unix_seconds})
    text = json.dumps({"version": FORMAT_VERSION, "entries": entries}, indent=2, sort_keys=True)
    _replace(path, text.encode())


def clear_quarantine(path: Path) -> None:
    """Ends every quarantine.

    Raises:
        OSError: the file cannot be removed.
    """
    path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise LocalQuarantineFileError("it is no text") from error
    try:
        value = json.loads(text)
    except ValueError as error:
        raise LocalQuarantineFileError("it is no JSON") from error
    if not isinstance(value, dict) or value.get("version") != FORMAT_VERSION:
        raise LocalQuarantineFileError("it is of another version")
    entries = value.get("entries")
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("reason"), str) for entry in entries.values()
    ):
        raise LocalQuarantineFileError("its entries are broken")
    return entries


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
