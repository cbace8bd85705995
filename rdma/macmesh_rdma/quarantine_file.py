"""A JSON file that remembers what must not be tried again, by key, and why.

``{"version": 1, "entries": {KEY: {"reason": ..., "unix_seconds": ...}}}``. Removing the file ends every quarantine.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1

Entries = dict[str, dict[str, Any]]


class LocalQuarantineFileError(OSError):
    """The file is there, but is not what this module writes."""


def read_entries(path: Path) -> Entries:
    """The entries by key; none where there is no file.

    Raises:
        LocalQuarantineFileError: it is not what this module writes.
        OSError: it cannot be read.
    """
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


def add_entry(path: Path, key: str, reason: str, unix_seconds: float) -> None:
    """Adds a key; the first reason of a key stays. A file that is not what this module writes is replaced.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    _change(path, lambda entries: entries.setdefault(key, {"reason": reason, "unix_seconds": unix_seconds}))


def remove_entry(path: Path, key: str) -> None:
    """Removes a key, where it is there. A file that is not what this module writes is replaced.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    _change(path, lambda entries: entries.pop(key, None))


def _change(path: Path, change: Callable[[Entries], object]) -> None:
    try:
        entries = read_entries(path)
    except LocalQuarantineFileError:
        entries = {}
    change(entries)
    text = json.dumps({"version": FORMAT_VERSION, "entries": entries}, indent=2, sort_keys=True)
    _replace(path, text.encode())


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
