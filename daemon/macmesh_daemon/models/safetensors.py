"""Reads and checks the header of a safetensors file.

The format: 8 bytes with the header's length (unsigned, little-endian), the header as JSON, then the data of
all tensors without gaps. The header maps each name to its dtype, shape and offsets within the data.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from macmesh_daemon.models.errors import LocalModelFolderError

#: Bytes of one element of each dtype that safetensors names.
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}

#: The format's own bound on the header.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a weight file.

    Attributes:
        file: Name of the file within the model folder.
        dtype: Name of the dtype in safetensors' terms, such as ``"BF16"``.
        shape: Its shape.
        begin: First byte, counted from the start of the file.
        end: One past its last byte.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The header of one file: its tensors by name, and its bytes as they are."""

    tensors: dict[str, TensorInfo]
    raw: bytes


def read_header(path: Path) -> SafetensorsHeader:
    """Reads the header of a safetensors file and checks it against the file's size.

    Raises:
        LocalModelFolderError: The file is missing, unreadable, truncated or contradicts itself; the message
            names it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = _raw_header(file, size, path)
    except OSError as problem:
        raise LocalModelFolderError(f"{path} cannot be read: {problem.strerror or problem}") from problem
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as problem:
        raise LocalModelFolderError(
            f"{path} has a header that is not JSON: fetch the file again"
        ) from problem
    if not isinstance(header, dict):
        raise LocalModelFolderError(f"{path} has a header that is not a JSON object: fetch the file again")
    header.pop("__metadata__", None)
    start = 8 + len(raw)
    tensors = {name: _tensor(name, entry, start, path) for name, entry in header.items()}
    _check_data(tensors, start, size, path)
    return SafetensorsHeader(tensors=tensors, raw=raw)


def _raw_header(file: BinaryIO, size: int, path: Path) -> bytes:
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):  # noqa: PLR2004  the format's length field
        raise LocalModelFolderError(
            f"{path} is truncated or no safetensors file ({size} bytes): fetch it again"
        )
    return file.read(length)


def _tensor(name: str, entry: Any, start: int, path: Path) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise LocalModelFolderError(
            f"{path}: the header's entry of {name!r} is not one: fetch the file again"
        )
    if dtype not in DTYPE_BYTES:
        raise LocalModelFolderError(f"{path}: {name!r} has the unknown dtype {dtype!r}")
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise LocalModelFolderError(
            f"{path}: {name!r} of {dtype} {shape} cannot have {end - begin} bytes: fetch the file again"
        )
    return TensorInfo(path.name, dtype, tuple(shape), start + begin, start + end)


def _check_data(tensors: dict[str, TensorInfo], start: int, size: int, path: Path) -> None:
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise LocalModelFolderError(
                f"{path}: the data of {name!r} overlaps or leaves a gap: fetch the file again"
            )
        position = tensor.end
    if position != size:
        raise LocalModelFolderError(
            f"{path} is {'truncated' if size < position else 'too long'}: "
            f"its header describes {position} bytes, it has {size}; fetch it again"
        )
