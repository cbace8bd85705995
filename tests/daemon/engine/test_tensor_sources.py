"""Which tensors a stage reads: with all others destroyed, it loads the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macmesh_daemon.engine.errors import LocalModelFilesError
from macmesh_daemon.engine.files import require_whole
from macmesh_daemon.engine.profile import map_tensors
from macmesh_daemon.engine.stage import load_stage
from macmesh_daemon.models.folder import ModelFolder, read_folder
from macmesh_daemon.weights.partial import ABOUT_NAME, About, PartialModel
from zoo import write_model

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

#: Plain, tied, experts stacked by the loader, latent attention split by it, and layers of several kinds.
NAMES = ("llama", "qwen2", "qwen3_moe", "deepseek_v3", "gemma3_text", "mamba2")


def destroy(folder: ModelFolder, kept: Collection[str]) -> None:
    """Overwrite every tensor but those."""
    for name, tensor in folder.tensors.items():
        if name not in kept:
            with (folder.path / tensor.file).open("r+b") as file:
                file.seek(tensor.begin)
                file.write(b"\xff" * tensor.size_bytes)


def weights(stage: Any) -> list[bytes]:
    return [np.array(array.reshape(-1).view(mx.uint8)).tobytes() for array in stage.owned_arrays()]


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_is_computed_from_the_named_tensors_alone(name: str, tmp_path: Path) -> None:
    folder = read_folder(write_model(tmp_path / "whole", name))
    tensors = map_tensors(folder)
    count = len(tensors.layers)
    everything = tensors.needed(0, count)
    assert everything <= folder.tensors.keys()
    for first, end in ((0, 1), (1, count)):
        expected = weights(load_stage(folder.path, first, end, count))
        needed = tensors.needed(first, end)
        assert needed < everything
        other = read_folder(write_model(tmp_path / f"part{first}", name))
        assert other.digest == folder.digest
        destroy(other, needed)
        assert weights(load_stage(other.path, first, end, count)) == expected


def test_a_stage_of_a_part_is_loaded_where_it_is_whole_and_else_refused_before(tmp_path: Path) -> None:
    folder = read_folder(write_model(tmp_path / "m", "qwen3_moe"))
    tensors = map_tensors(folder)
    count = len(tensors.layers)
    (folder.path / ABOUT_NAME).write_text(About(folder.digest).to_json_text())
    partial = PartialModel(folder.path)
    missing = partial.missing(folder.tensors, tensors.needed(1, count))
    partial.commit(dict.fromkeys(missing[1:], "00"))
    with pytest.raises(LocalModelFilesError, match="are not there"):
        load_stage(folder.path, 1, count, count)
    with pytest.raises(LocalModelFilesError, match="are not there"):
        require_whole(folder.path)
    partial.commit(dict.fromkeys(missing[:1], "00"))
    stage = load_stage(folder.path, 1, count, count)
    assert len(dict(tree_flatten(dict(enumerate(stage.owned_arrays()))))) > 1
    with pytest.raises(LocalModelFilesError, match="are not there"):
        load_stage(folder.path, 0, 1, count)
    partial.commit(dict.fromkeys(partial.missing(folder.tensors, folder.tensors), "00"))
    require_whole(folder.path)
