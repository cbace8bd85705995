"""What this node serves to other nodes: models by their digest, never by a path of the caller's.

Served are whole models below the configured model folders, those that this node itself was asked to load, and
the partial models of the store, as far as they are there. Blocks on the disk: call it in a thread from asyncio.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from macmesh_daemon.models.errors import LocalModelError
from macmesh_daemon.models.folder import CONFIG_NAME, WEIGHTS_PATTERN, ModelFolder, read_folder
from macmesh_daemon.weights.errors import LocalModelUnknownError, LocalRangeError
from macmesh_daemon.weights.hashes import HashCache
from macmesh_daemon.weights.partial import is_partial, read_at
from macmesh_daemon.weights.pieces import PIECE_BYTES, Piece
from macmesh_daemon.weights.store import MAX_SMALL_BYTES, is_digest, is_plain_name, is_small_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from macmesh_daemon.weights.partial import PartialModel
    from macmesh_daemon.weights.store import ModelStore

LENGTH_BYTES: Final = 8
_Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a model.

    Attributes:
        name: Its name in the folder.
        size_bytes: Its length.
        head_bytes: For weight files, what comes before the data of tensors; 0 for the others.
        sha256: Of those first bytes, or of the whole of the others.
    """

    name: str
    size_bytes: int
    head_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a model, and where a hub has it; empty where none is known to."""

    digest: str
    files: tuple[FileEntry, ...]
    hub_model: str = ""
    hub_commit: str = ""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a node holds of a model's weights: all, or ranges of its files."""

    whole: bool
    ranges: dict[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True)
class _Served:
    folder: ModelFolder
    signature: _Signature
    entries: dict[str, FileEntry]
    partial: PartialModel | None


class Library:
    """Finds models by digest and reads them.

    Args:
        store: The partial models.
        model_folders: Folders whose models are served; looked through when a digest is not known.
        hashes_folder: Where hashes are kept once they were computed; made when the first is.
    """

    def __init__(
        self, store: ModelStore, model_folders: Callable[[], Iterable[Path]], hashes_folder: Path
    ) -> None:
        self.store = store
        self._model_folders = model_folders
        self._hashes = HashCache(hashes_folder)
        self._seen: dict[Path, tuple[_Signature, str]] = {}
        self._served: dict[str, _Served] = {}
        self._lock = threading.Lock()

    def offer(self, folder: ModelFolder) -> None:
        """Serve a whole model from now on, wherever it lies."""
        if not is_partial(folder.path):
            with self._lock:
                self._seen[folder.path] = (_signature(folder.path), folder.digest)

    def folder(self, digest: str) -> ModelFolder | None:
        """A whole model on this machine with that digest; None where there is none."""
        served = self._find(digest)
        return served.folder if served is not None and served.partial is None else None

    def has(self, digest: str) -> bool:
        """Whether anything of a model with that digest is served here."""
        return self._find(digest) is not None

    def manifest(self, digest: str) -> Manifest:
        """The files of a model.

        Raises:
            LocalModelUnknownError: no such model is served here.
        """
        served = self._require(digest)
        about = served.partial.about if served.partial is not None else None
        return Manifest(
            digest=digest,
            files=tuple(served.entries.values()),
            hub_model=about.hub_model if about else "",
            hub_commit=about.hub_commit if about else "",
        )

    def holdings(self, digest: str) -> Holdings:
        """What is held of a model.

        Raises:
            LocalModelUnknownError: no such model is served here.
        """
        served = self._require(digest)
        if served.partial is None:
            return Holdings(whole=True, ranges={})
        return Holdings(whole=False, ranges=served.partial.ranges())

    def hash_of(self, digest: str, piece: Piece) -> str:
        """SHA-256, hex, of a piece that is held: computed once, and again where its file has changed.

        Raises:
            LocalModelUnknownError: no such model is served here.
            LocalRangeError: it is no range of the model, or not held.
        """
        served = self._require(digest, known=True)
        path = self._checked(served, piece)
        if served.partial is not None and (known := served.partial.hash_of(piece)):
            return known
        try:
            return self._hashes.get(
                digest, path, piece, lambda: hashlib.sha256(read_at(path, piece.begin, piece.size_bytes))
            )
        except OSError as problem:
            raise LocalRangeError(f"{path} cannot be read: {problem}") from problem

    def read(self, digest: str, piece: Piece, offset: int, size: int) -> bytes:
        """Bytes of a piece that is held, from ``offset`` within it on.

        Raises:
            LocalModelUnknownError: no such model is served here.
            LocalRangeError: it is no range of the model, or not held, or cannot be read.
        """
        path = self._checked(self._require(digest, known=True), piece)
        size = min(size, piece.size_bytes - offset)
        try:
            return read_at(path, piece.begin + offset, size)
        except OSError as problem:
            raise LocalRangeError(f"{path} cannot be read: {problem}") from problem

    def save(self) -> None:
        """Keep the hashes that were computed. A full disk loses them, and nothing else."""
        self._hashes.save()

    def _checked(self, served: _Served, piece: Piece) -> Path:
        """The path of a piece's file, where the piece may be read."""
        entry = served.entries.get(piece.file)
        if entry is None or not 0 <= piece.begin < piece.end <= entry.size_bytes:
            raise LocalRangeError(f"{piece.file[:80]!r} has no bytes {piece.begin} to {piece.end}")
        is_head = piece.end <= (entry.head_bytes or entry.size_bytes)
        if piece.size_bytes > (MAX_SMALL_BYTES if is_head else PIECE_BYTES):
            raise LocalRangeError(f"{piece.size_bytes} bytes of {entry.name} are more than a piece")
        if served.partial is not None and not is_head and not served.partial.holds(piece):
            raise LocalRangeError(f"bytes {piece.begin} to {piece.end} of {entry.name} are not here")
        return served.folder.path / entry.name

    def _require(self, digest: str, *, known: bool = False) -> _Served:
        """What is served of a model; with ``known`` the folders are not looked through where that is known."""
        served = self._find(digest, known=known)
        if served is None:
            raise LocalModelUnknownError(f"this node serves no model {digest[:12]!r}")
        return served

    def _find(self, digest: str, *, known: bool = False) -> _Served | None:
        if not is_digest(digest):
            return None
        with self._lock:
            served = self._served.get(digest)
            if served is not None and _signature(served.folder.path) == served.signature:
                if known or served.partial is None:
                    return served
            else:
                self._served.pop(digest, None)
                served = None
            found = self._whole(digest) or served or self._partial(digest)
            if found is not None:
                self._served[digest] = found
            return found

    def _whole(self, digest: str) -> _Served | None:
        candidates = [path for path, (_, known) in self._seen.items() if known == digest]
        for path in [*candidates, *self._unseen()]:
            signature = _signature(path)
            if self._seen.get(path, ((), ""))[0] == signature and path not in candidates:
                continue
            try:
                folder = read_folder(path)
            except LocalModelError:
                self._seen[path] = (signature, "")
                continue
            self._seen[folder.path] = self._seen[path] = (signature, folder.digest)
            if folder.digest == digest:
                return _Served(folder, signature, _entries(folder), None)
        return None

    def _partial(self, digest: str) -> _Served | None:
        partial = self.store.open(digest)
        if partial is None:
            return None
        try:
            folder = read_folder(partial.folder)
        except LocalModelError:
            return None
        return _Served(folder, _signature(folder.path), _entries(folder), partial)

    def _unseen(self) -> list[Path]:
        """Folders with a model in them that are new or have changed: at the top, or below an organisation."""
        found: list[Path] = []
        for top in self._model_folders():
            for pattern in (f"*/{CONFIG_NAME}", f"*/*/{CONFIG_NAME}"):
                with contextlib.suppress(OSError):
                    found.extend(config.parent for config in top.expanduser().glob(pattern))
        return [
            path
            for path in dict.fromkeys(found)
            if not is_partial(path) and self._seen.get(path, ((), ""))[0] != _signature(path)
        ]


def _signature(path: Path) -> _Signature:
    """What changes when a model's files do; empty where the folder is gone."""
    found: list[tuple[str, int, int]] = []
    changes = is_partial(path)
    with contextlib.suppress(OSError):
        for entry in [path / CONFIG_NAME, *sorted(path.glob(WEIGHTS_PATTERN))]:
            status = entry.stat()
            # Of a partial model, the times change with every piece.
            found.append((entry.name, status.st_size, 0 if changes else status.st_mtime_ns))
    return tuple(found)


def _entries(folder: ModelFolder) -> dict[str, FileEntry]:
    entries: dict[str, FileEntry] = {}
    for path in sorted(folder.path.iterdir()):
        try:
            size = path.stat().st_size if path.is_file() else -1
            if path.name in folder.weight_files and is_plain_name(path.name):
                length = int.from_bytes(read_at(path, 0, LENGTH_BYTES), "little")
                head = read_at(path, 0, LENGTH_BYTES + length)
            elif is_small_name(path.name) and 0 <= size <= MAX_SMALL_BYTES:
                head = b""
            else:
                continue
            content = head or path.read_bytes()
        except OSError:
            continue
        entries[path.name] = FileEntry(path.name, size, len(head), hashlib.sha256(content).hexdigest())
    return entries
