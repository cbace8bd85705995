"""Errors of the event log; the tree is in the package's docstring."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class EventLogError(Exception):
    """Base of the errors of this package."""


class LocalEventLogDamaged(EventLogError):  # noqa: N818  named as the project's error trees are
    """A file of the log holds something else than records.

    Attributes:
        path: The file.
        line: Number of the line, from 1.
    """

    def __init__(self, path: Path, line: int, what: str) -> None:
        super().__init__(
            f"{path}, line {line}: {what}. Only the last line of a file may be torn: give the files as the "
            "daemon wrote them"
        )
        self.path = path
        self.line = line
