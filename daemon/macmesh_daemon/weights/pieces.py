"""The parts in which weights travel: a tensor, or a stretch of a large one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from macmesh_daemon.models.safetensors import TensorInfo

#: Tensors above this are cut, so that what is hashed, sent again and lost with a connection stays small.
PIECE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Bytes ``begin`` to ``end - 1`` of a file of a model, counted from the start of the file.

    Every node cuts a model in the same way, so a piece is named by these alone.
    """

    file: str
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.end - self.begin


def cut(file: str, begin: int, end: int) -> list[Piece]:
    """Cut a range into pieces of at most `PIECE_BYTES`, from its begin on; none where it is empty."""
    return [Piece(file, start, min(start + PIECE_BYTES, end)) for start in range(begin, end, PIECE_BYTES)]


def pieces_of(tensors: Mapping[str, TensorInfo], names: Iterable[str]) -> dict[Piece, str]:
    """The pieces of some tensors in the order of the files, each with the name of its tensor.

    Raises:
        KeyError: there is no such tensor.
    """
    infos = sorted(((tensors[name], name) for name in set(names)), key=lambda i: (i[0].file, i[0].begin))
    return {piece: name for info, name in infos for piece in cut(info.file, info.begin, info.end)}
