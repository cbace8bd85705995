"""Hashes of pieces of weight files, computed once and kept as long as the file has its size and its time."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Protocol

from macmesh_daemon.files import write_durably
from macmesh_daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from macmesh_daemon.weights.pieces import Piece

_log = get_logger(part="weights")


class _Hash(Protocol):
    def hexdigest(self) -> str: ...


class HashCache:
    """Keeps hashes in one file for each model. Safe to use from threads.

    Args:
        folder: Made when the first are saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: By digest, then by file: its size and time, and the hashes by range.
        self._models: dict[str, dict[str, tuple[tuple[int, int], dict[str, str]]]] = {}
        self._changed: set[str] = set()
        self._lock = threading.Lock()

    def get(self, digest: str, path: Path, piece: Piece, compute: Callable[[], _Hash]) -> str:
        """The hash of a piece of the file at ``path``; computed where the file has changed since.

        Raises:
            OSError: the file cannot be read.
        """
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        key = f"{piece.begin}-{piece.end}"
        with self._lock:
            kept = self._model(digest).get(piece.file)
            if kept is not None and kept[0] == stamp and key in kept[1]:
                return kept[1][key]
        found = compute().hexdigest()
        with self._lock:
            model = self._model(digest)
            kept = model.get(piece.file)
            if kept is None or kept[0] != stamp:
                kept = model[piece.file] = (stamp, {})
            kept[1][key] = found
            self._changed.add(digest)
        return found

    def save(self) -> None:
        """Write what was computed since the last time."""
        with self._lock:
            texts = {digest: json.dumps(self._models[digest]) for digest in self._changed}
            self._changed.clear()
        for digest, text in texts.items():
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_durably(self._folder / f"{digest}.json", text.encode())
            except OSError as problem:
                _log.warning("hashes not kept", model=digest[:12], error=str(problem))

    def _model(self, digest: str) -> dict[str, tuple[tuple[int, int], dict[str, str]]]:
        if digest not in self._models:
            self._models[digest] = self._read(digest)
        return self._models[digest]

    def _read(self, digest: str) -> dict[str, tuple[tuple[int, int], dict[str, str]]]:
        try:
            value = json.loads((self._folder / f"{digest}.json").read_text("utf-8"))
            return {
                str(file): (
                    (int(stamp[0]), int(stamp[1])),
                    {str(key): str(sha) for key, sha in hashes.items()},
                )
                for file, (stamp, hashes) in value.items()
            }
        except (OSError, ValueError, TypeError, AttributeError, IndexError):
            return {}  # they are computed anew
