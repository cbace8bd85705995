"""Reads the event logs of nodes from files and folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.eventlog.errors import LocalEventLogDamaged
from macmesh_daemon.eventlog.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FOLDER_NAME = "events"
FILE_NAME = "events.jsonl"


def log_files(place: Path) -> tuple[Path, ...]:
    """The files of one log, oldest first.

    Args:
        place: A file, the folder of a log, or the data folder of a node.

    Raises:
        FileNotFoundError: No log is there.
    """
    if place.is_file():
        return (place,)
    for folder in (place / FOLDER_NAME, place):
        found = [path for path in folder.glob(f"{FILE_NAME}*") if _age(path) is not None]
        if found:
            return tuple(sorted(found, key=lambda path: -(_age(path) or 0)))
    raise FileNotFoundError(f"{place}: no event log is there ({FILE_NAME})")


def read_file(path: Path) -> Iterator[Record]:
    """The records of a file, in order. Its last line may be torn: it is passed over.

    A line that is torn by a kill and mended by the next start is passed over too: the numbers of the records
    tell whether one is missing.

    Raises:
        LocalEventLogDamaged: A line is no record, and no beginning of one.
        OSError: The file cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            text = line.strip()
            if not text:
                continue
            try:
                yield Record.from_line(text)
            except ValueError as error:
                if _is_torn(text):
                    continue
                raise LocalEventLogDamaged(path, number, f"this is no record ({error})") from error


def read_logs(places: Iterable[Path]) -> tuple[Record, ...]:
    """All records of the logs at some places, each node's in its order; doubles are kept once.

    Raises:
        FileNotFoundError: No log is at one of the places.
        LocalEventLogDamaged: A file holds something else.
        OSError: A file cannot be read.
    """
    found: dict[tuple[str, int, int], Record] = {}
    for place in places:
        for path in log_files(place):
            for record in read_file(path):
                found.setdefault((record.node, record.incarnation, record.seq), record)
    return tuple(found[key] for key in sorted(found))


def _age(path: Path) -> int | None:
    """0 for the current file, n for the n-th put aside; None for anything else."""
    suffix = path.name.removeprefix(FILE_NAME)
    if not suffix:
        return 0
    return int(suffix[1:]) if suffix[0] == "." and suffix[1:].isdigit() else None


def _is_torn(text: str) -> bool:
    """Whether the text is the beginning of a record that was cut off."""
    return text.startswith('{"v":'[: len(text)]) and not text.endswith("}")
