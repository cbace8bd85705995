"""Writes model folders byte by byte, so that they can be broken on purpose."""

import json
import struct
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 4096}
ITEM_BYTES = {"F32": 4, "BF16": 2, "U8": 1}


def header_of(tensors: dict[str, tuple[str, list[int]]]) -> tuple[dict[str, Any], int]:
    """A valid header for these tensors, and the size of their data."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = ITEM_BYTES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return header, position


def write_raw(path: Path, header: object, data_bytes: int) -> Path:
    """A file with that header and so many bytes of data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data_bytes))
    return path


def write_tensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> Path:
    """A valid file."""
    return write_raw(path, *header_of(tensors))


FIRST = {"a": ("F32", [2, 3]), "b": ("BF16", [4])}
SECOND = {"c": ("U8", [5])}


def write_folder(folder: Path) -> Path:
    """A valid folder with two shards and an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tensors(folder / "model-00001-of-00002.safetensors", FIRST)
    write_tensors(folder / "model-00002-of-00002.safetensors", SECOND)
    weight_map = dict.fromkeys(FIRST, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(SECOND, "model-00002-of-00002.safetensors")
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    """The index."""
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
