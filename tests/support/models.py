"""Copies of the demo model, whole and broken."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from macmesh_daemon.models.demo import demo_model_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def copy_model(target: Path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(demo_model_folder(), target)
    return target


def _edit_json(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def truncate_weights(folder: Path) -> None:
    """Cut the last kilobyte off a shard."""
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1024])


def spoil_header(folder: Path) -> None:
    """Make a shard's header unreadable."""
    shard = min(folder.glob("*.safetensors"))
    shard.write_bytes(b"\xff" * 64 + shard.read_bytes()[64:])


def drop_index_entry(folder: Path) -> None:
    """Take a tensor out of the index, leaving it in its shard."""

    def change(index: dict[str, object]) -> None:
        weight_map = index["weight_map"]
        assert isinstance(weight_map, dict)
        weight_map.pop(next(iter(weight_map)))

    _edit_json(folder / "model.safetensors.index.json", change)


def lose_shard(folder: Path) -> None:
    """Delete a shard that the index names."""
    min(folder.glob("*.safetensors")).unlink()


def rename_architecture(folder: Path) -> None:
    """Name an architecture that nobody has."""
    _edit_json(folder / "config.json", lambda config: config.update(model_type="no_such_architecture"))


def no_config(folder: Path) -> None:
    """Delete the configuration."""
    (folder / "config.json").unlink()


def change_one_layer(folder: Path, layer: int) -> None:
    """Negate one projection of one layer, leaving every header as it is."""
    name = f"model.layers.{layer}.mlp.down_proj.weight"
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    shard = folder / index["weight_map"][name]
    data = bytearray(shard.read_bytes())
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length])[name]
    start, end = (8 + length + offset for offset in entry["data_offsets"])
    width = {"BF16": 2, "F16": 2, "F32": 4}[entry["dtype"]]
    for position in range(start + width - 1, end, width):
        data[position] ^= 0x80  # the sign bit is in the last byte of a little-endian float
    shard.write_bytes(data)
