"""A model of which a part is here: a folder in the usual layout whose weight files have holes.

Each weight file begins with its header as it is and has its full length; the bytes of tensors that were not
fetched are holes, which take no room. So mlx-lm's lazy loading of a stage's tensors works unchanged. Which
bytes are there stands in a journal beside them: a line is written once its bytes are on the drive, so a crash
at any time loses at most what has to be fetched again, and a hole is never taken for weights.

One process writes: the daemon that owns the data folder. Blocks on the disk; safe to call from threads.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from macmesh_daemon.files import make_durable
from macmesh_daemon.weights.errors import LocalWeightsMissingError, LocalWeightsStoreError
from macmesh_daemon.weights.pieces import Piece, pieces_of
from macmesh_daemon.weights.ranges import RangeSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from macmesh_daemon.models.safetensors import TensorInfo

JOURNAL_NAME: Final = "macmesh-weights.journal"
ABOUT_NAME: Final = "macmesh-weights.json"
FORMAT: Final = "macmesh-weights/1"
_CRC_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class About:
    """What a partial model says of itself.

    Attributes:
        digest: Of the model, as in `ModelFolder`.
        names: What it was asked for by.
        hub_model: Where it can be had, ``organisation/model``; empty where no hub is known to have it.
        hub_commit: The commit there.
        hub_sha256: SHA-256, hex, that the hub states for whole weight files, by name.
    """

    digest: str
    names: tuple[str, ...] = ()
    hub_model: str = ""
    hub_commit: str = ""
    hub_sha256: Mapping[str, str] = field(default_factory=dict)

    def to_json_text(self) -> str:
        """As JSON."""
        value = {
            "format": FORMAT,
            "digest": self.digest,
            "names": list(self.names),
            "hub_model": self.hub_model,
            "hub_commit": self.hub_commit,
            "hub_sha256": dict(self.hub_sha256),
        }
        return json.dumps(value, indent=1)

    @classmethod
    def read(cls, folder: Path) -> About:
        """What the partial model in a folder says of itself.

        Raises:
            LocalWeightsStoreError: it is none, or its note cannot be read.
        """
        path = folder / ABOUT_NAME
        try:
            value = json.loads(path.read_text("utf-8"))
            if value["format"] != FORMAT:
                raise LocalWeightsStoreError(f"{path} has the format {value['format']!r}, not {FORMAT!r}")
            return cls(
                digest=str(value["digest"]),
                names=tuple(map(str, value["names"])),
                hub_model=str(value["hub_model"]),
                hub_commit=str(value["hub_commit"]),
                hub_sha256={str(name): str(sha) for name, sha in value["hub_sha256"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise LocalWeightsStoreError(f"{path} cannot be read: {problem!r}; remove {folder}") from problem


def is_partial(folder: Path) -> bool:
    """Whether a model folder is one that may have holes."""
    return (folder / ABOUT_NAME).exists()


@dataclass(frozen=True, slots=True)
class Held:
    """What the journal of a partial model says.

    Attributes:
        ranges: Bytes that are there and were verified, by file.
        hashes: SHA-256, hex, of each piece among them.
        sound_bytes: Length of the journal up to where it is sound.
    """

    ranges: dict[str, RangeSet]
    hashes: dict[Piece, str]
    sound_bytes: int


def read_held(folder: Path) -> Held:
    """Read the journal of a partial model; what follows a torn or foreign line does not count.

    Raises:
        LocalWeightsStoreError: it cannot be read.
    """
    held = Held({}, {}, 0)
    try:
        content = (folder / JOURNAL_NAME).read_bytes()
    except FileNotFoundError:
        return held
    except OSError as problem:
        raise LocalWeightsStoreError(f"{folder / JOURNAL_NAME} cannot be read: {problem}") from problem
    sound = 0
    for line in content.splitlines(keepends=True):
        entry = _entry(line)
        if entry is None:
            break
        sound += len(line)
        piece, sha256 = entry
        held.ranges.setdefault(piece.file, RangeSet()).add(piece.begin, piece.end)
        held.hashes[piece] = sha256
    return Held(held.ranges, held.hashes, sound)


def _line(piece: Piece, sha256: str) -> bytes:
    body = json.dumps([piece.file, piece.begin, piece.end, sha256]).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _entry(line: bytes) -> tuple[Piece, str] | None:
    crc, _, body = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or len(crc) != _CRC_DIGITS:
        return None
    try:
        if int(crc, 16) != zlib.crc32(body):
            return None
        file, begin, end, sha256 = json.loads(body)
    except ValueError:
        return None
    return Piece(str(file), int(begin), int(end)), str(sha256)


def missing(tensors: Mapping[str, TensorInfo], names: Iterable[str], held: Held) -> list[Piece]:
    """The pieces of some tensors that are not there, in the order of the files. Pure."""
    nothing = RangeSet()
    return [
        piece
        for piece in pieces_of(tensors, names)
        if not held.ranges.get(piece.file, nothing).covers(piece.begin, piece.end)
    ]


def require_held(folder: Path, tensors: Mapping[str, TensorInfo], names: Iterable[str]) -> None:
    """Let a load of these tensors pass where none of their bytes is a hole.

    Raises:
        LocalWeightsMissingError: some are; nothing was read of them.
        LocalWeightsStoreError: the journal cannot be read.
    """
    names = list(names)
    if gone := missing(tensors, names, read_held(folder)):
        owner = pieces_of(tensors, names)[gone[0]]
        size = sum(piece.size_bytes for piece in gone)
        raise LocalWeightsMissingError(
            f"{folder} holds a part of its model: {size} bytes of what is to be read are not there, "
            f"the first of them of {owner} in {gone[0].file}; load it through the cluster, which fetches them"
        )


class PartialModel:
    """Writes a partial model, and knows what it holds.

    Args:
        folder: Laid out by `store.ModelStore`.

    Raises:
        LocalWeightsStoreError: the folder is none, or cannot be read or mended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = About.read(folder)
        self._lock = threading.Lock()
        self._held = read_held(folder)
        journal = folder / JOURNAL_NAME
        try:
            if journal.exists() and journal.stat().st_size != self._held.sound_bytes:
                os.truncate(journal, self._held.sound_bytes)
        except OSError as problem:
            raise LocalWeightsStoreError(f"{journal} cannot be mended: {problem}") from problem

    def holds(self, piece: Piece) -> bool:
        """Whether all its bytes are there."""
        with self._lock:
            ranges = self._held.ranges.get(piece.file)
            return ranges is not None and ranges.covers(piece.begin, piece.end)

    def ranges(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """The bytes that are there, by file."""
        with self._lock:
            return {file: tuple(ranges) for file, ranges in self._held.ranges.items()}

    def hash_of(self, piece: Piece) -> str:
        """SHA-256, hex, of a piece that was written here; empty where that is not known."""
        with self._lock:
            return self._held.hashes.get(piece, "")

    @property
    def held_bytes(self) -> int:
        """Bytes of weights that are there."""
        with self._lock:
            return sum(ranges.size_bytes for ranges in self._held.ranges.values())

    def missing(self, tensors: Mapping[str, TensorInfo], names: Iterable[str]) -> list[Piece]:
        """The pieces of some tensors that are not there, in the order of the files."""
        with self._lock:
            return missing(tensors, names, self._held)

    def write(self, piece: Piece, content: bytes) -> None:
        """Put verified bytes at their place. They count once `commit` has returned.

        Raises:
            LocalWeightsStoreError: they cannot be written, or are too few or too many.
        """
        if len(content) != piece.size_bytes:
            raise LocalWeightsStoreError(f"{len(content)} bytes for {piece}")
        path = self.folder / piece.file
        try:
            descriptor = os.open(path, os.O_WRONLY)
            try:
                position = 0
                while position < len(content):
                    position += os.pwrite(descriptor, content[position:], piece.begin + position)
            finally:
                os.close(descriptor)
        except OSError as problem:
            raise LocalWeightsStoreError(f"{path} cannot be written: {problem}") from problem

    def commit(self, written: Mapping[Piece, str]) -> None:
        """Note that these pieces are there, each with its SHA-256, once their bytes are on the drive.

        Raises:
            LocalWeightsStoreError: that cannot be made durable; they do not count then.
        """
        lines = b"".join(_line(piece, sha256) for piece, sha256 in written.items())
        journal = self.folder / JOURNAL_NAME
        try:
            for file in {piece.file for piece in written}:
                make_durable(self.folder / file)
            with self._lock:
                self._append(journal, lines)
                for piece, sha256 in written.items():
                    self._held.ranges.setdefault(piece.file, RangeSet()).add(piece.begin, piece.end)
                    self._held.hashes[piece] = sha256
        except OSError as problem:
            raise LocalWeightsStoreError(f"{journal} cannot be written: {problem}") from problem

    def forget(self, file: str) -> None:
        """Count nothing of a file as there any more: what is fetched of it is fetched again.

        Raises:
            LocalWeightsStoreError: the journal cannot be written.
        """
        journal = self.folder / JOURNAL_NAME
        with self._lock:
            hashes = {piece: sha for piece, sha in self._held.hashes.items() if piece.file != file}
            new = journal.with_suffix(".new")
            try:
                new.write_bytes(b"".join(_line(piece, sha) for piece, sha in hashes.items()))
                make_durable(new)
                new.replace(journal)
                make_durable(self.folder)
            except OSError as problem:
                raise LocalWeightsStoreError(f"{journal} cannot be written: {problem}") from problem
            self._held = read_held(self.folder)

    def _append(self, journal: Path, lines: bytes) -> None:
        fresh = not journal.exists()
        with journal.open("ab") as file:
            begin = file.tell()
            try:
                file.write(lines)
                file.flush()
                make_durable(journal)
            except OSError:
                file.truncate(begin)  # else a half line would hide all that is noted after it
                raise
        if fresh:
            make_durable(self.folder)


def read_at(path: Path, begin: int, size: int) -> bytes:
    """Read so many bytes of a file.

    Raises:
        OSError: it cannot be read, or ends before.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts: list[bytes] = []
        while size > 0:
            part = os.pread(descriptor, size, begin)
            if not part:
                raise OSError(f"{path} ends at {begin}")
            parts.append(part)
            begin += len(part)
            size -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
