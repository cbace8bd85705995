"""Predicted weight bytes against what mlx-lm really loads, for every architecture that it ships."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from daemon.weights_only import own_bytes, weights_profile
from macmesh_daemon.engine.anatomy import Anatomy, examine
from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.engine.profile_trace import layers_of
from macmesh_daemon.engine.profile_weights import layer_weights
from macmesh_daemon.engine.stage import load_stage
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import ModelProfile, Reserves, StageDemand, stage_ledger
from zoo import BROKEN, CONFIGS, METAL_ONLY, shared_model, write_model
from zoo.splits import SEED

#: Their forward pass cannot be described on a CPU, so that only bytes per layer and in all are compared.
NO_STEP = {*METAL_ONLY, *BROKEN}


@pytest.fixture(autouse=True)
def no_kernel_compilation() -> Iterator[None]:
    """On the CPU, mlx starts a C++ compiler for each fused kernel; shapes do not depend on it."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def shapes(model: Any) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
    flat: Any = tree_flatten(model.parameters())
    return {path: (array.shape, array.dtype) for path, array in flat}


def layer_bytes(model: Any) -> list[int]:
    return [layer_weights(layer, {}).size_bytes for layer in layers_of(model)]


def built(folder: Path) -> Any:
    return build(read_folder(folder, require_weights=False))


def config_alone(folder: Path, to: Path) -> Path:
    to.mkdir()
    (to / "config.json").write_text((folder / "config.json").read_text())
    return to


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_predicted_bytes_equal_the_loaded_ones(name: str, tmp_path: Path, shared_models: Path) -> None:
    """By layer and in all, from headers and from the config alone, and for the stages of a cut model."""
    folder = shared_model(shared_models, name, seed=SEED)
    loaded: Any = load_model(folder)[0]
    in_layers = [own_bytes(layer) for layer in loaded.layers]
    from_headers, from_config = built(folder), built(config_alone(folder, tmp_path / "config"))
    assert layer_bytes(from_headers) == layer_bytes(from_config) == in_layers
    assert shapes(from_headers) == shapes(from_config) == shapes(loaded)
    if name in NO_STEP:
        return
    anatomy = examine(from_headers)
    profile = weights_profile(from_headers, anatomy)
    assert profile.total_weight_bytes == own_bytes(loaded)
    assert profile.shared_bytes == 0
    assert profile.embedding_bytes > 0
    assert profile.norm_bytes + profile.head_bytes > 0 or name in HEAD_AMONG_THE_LAYERS
    ranges = two_stages(anatomy)
    assert charged(profile, ranges) == held(folder, ranges)


HEAD_AMONG_THE_LAYERS = {"iquestloopcoder"}
"""Calls parts of its layers, never the layers, so that no first or last one is seen. It runs whole."""


def two_stages(anatomy: Anatomy) -> list[tuple[int, int]]:
    count = anatomy.layer_count
    return [(0, count)] if anatomy.split_refusal else [(0, 1), (1, count)]


def charged(profile: ModelProfile, ranges: list[tuple[int, int]]) -> list[int]:
    demand = StageDemand(context_tokens=1, slots=1, prefill_chunk_tokens=1, reserves=Reserves())
    return [
        stage_ledger(
            profile, demand, first_layer=first, end_layer=end, usable_bytes=0, fused_attention=True
        ).weights_bytes
        for first, end in ranges
    ]


def held(folder: Path, ranges: list[tuple[int, int]]) -> list[int]:
    count = ranges[-1][1]
    return [load_stage(folder, first, end, count).owned_bytes for first, end in ranges]


#: Learned positions and a tied head; experts; recurrent layers.
MEASURED = ("gpt2", "gpt_oss", "qwen3_next")

#: What a stage holds beside its parameters: tables of rotary positions and the like.
BUFFERS_BYTES = 64 * 1024


@pytest.mark.parametrize("name", MEASURED)
def test_a_stage_takes_the_memory_that_is_charged(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", name)
    model = built(folder)
    count = len(layers_of(model))
    ranges = [(0, 1), (1, count - 1), (count - 1, count), (0, count)]
    expected = charged(weights_profile(model, examine(model)), ranges)
    del model
    for (first, end), bytes_charged in zip(ranges, expected, strict=True):
        gc.collect()
        before = mx.get_active_memory()
        stage = load_stage(folder, first, end, count)
        gc.collect()
        assert 0 <= mx.get_active_memory() - before - bytes_charged < BUFFERS_BYTES
        assert stage.owned_bytes == bytes_charged
        del stage
