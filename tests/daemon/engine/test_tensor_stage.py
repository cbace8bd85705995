"""One rank's part of every layer: what it holds, to the byte, and how little more on the way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

from macmesh_daemon.engine.caches import StageCaches
from macmesh_daemon.engine.errors import LocalModelLoadError, LocalStageError, LocalUnsplittableError
from macmesh_daemon.engine.profile import profile_folder
from macmesh_daemon.engine.profile_shards import PretendedGroup, pretended_communication
from macmesh_daemon.engine.profile_trace import layers_of
from macmesh_daemon.engine.tensor_stage import TensorStage, load_tensor_stage
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import ModelProfile, Reserves, StageDemand, stage_cache_cost
from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.tensor import shard_profile, tensor_ledger
from tinymodels import write_tiny_model
from zoo import config, write_model

LAYERS = 4
PAGE = 16_384
ROOMY = 2**40


@pytest.fixture(autouse=True)
def no_kernel_compilation() -> Iterator[None]:
    mx.disable_compile()
    yield
    mx.enable_compile()


def written(folder: Path, name: str, layers: int = LAYERS) -> Path:
    if name in {"llama", "minimax", "qwen3"}:
        return write_tiny_model(folder, name)
    changes: Any = {} if config(name).get("text_config") else {"num_hidden_layers": layers}
    return write_model(folder, name, **changes)


def profile_of(folder: Path) -> ModelProfile:
    return ModelProfile.from_json_text(profile_folder(read_folder(folder)).to_json_text())


def run(stage: TensorStage, caches: StageCaches, tokens: int) -> None:
    logits = stage.step([mx.zeros((1, tokens), mx.uint32)], caches)
    stage.evaluate(logits if tokens == 1 else [], caches)


@pytest.mark.parametrize("name", ["llama", "minimax", "deepseek_v3"])
def test_a_rank_holds_what_its_ledger_says_to_the_byte(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path, name)
    profile = profile_of(folder)
    shard = profile.tensor_shards[0]
    part = shard_profile(profile, shard)
    node = NodeCapacity(node_id="a", ram_bytes=ROOMY, usable_bytes=ROOMY, bandwidth_gb_per_s=100)
    demand = StageDemand(context_tokens=700, slots=1, prefill_chunk_tokens=64, reserves=Reserves())
    ledger = tensor_ledger(profile, shard, demand, node)
    lines = {entry.name: entry.size_bytes for entry in ledger.entries}
    for rank in range(2):
        stage = load_tensor_stage(folder, rank, 2, LAYERS)
        charged = lines["weights"] + lines.get("embedding", 0) + lines.get("head", 0)
        assert stage.owned_bytes == charged == shard.weight_bytes
        caches = stage.make_caches(700)
        run(stage, caches, 64)
        run(stage, caches, 1)
        cost = stage_cache_cost(part, 0, LAYERS)
        assert caches.nbytes == cost.reserved_bytes(700) == lines["cache"]
        whole = stage_cache_cost(profile, 0, LAYERS).reserved_bytes(700)
        assert caches.nbytes * 2 == whole or (name == "deepseek_v3" and caches.nbytes == whole)


def test_quantised_caches_cost_what_is_charged_too(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "llama", head_dim=64)
    profile = profile_of(folder).with_kv_bits(8)
    shard = profile.tensor_shards[0]
    stage = load_tensor_stage(folder, 1, 2, LAYERS)
    caches = stage.make_caches(300, kv_bits=8)
    run(stage, caches, 8)
    cost = stage_cache_cost(shard_profile(profile, shard), 0, LAYERS)
    assert caches.nbytes == cost.reserved_bytes(300)


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_loading_holds_the_part_and_no_more_than_one_whole_layer(name: str, tmp_path: Path) -> None:
    big: Any = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 256}
    if name == "llama":
        folder = write_tiny_model(tmp_path, name, num_hidden_layers=8, **big)
    else:
        folder = write_model(tmp_path, name, num_hidden_layers=8, **big)
    model, _ = load_model(folder, lazy=True)
    layer_bytes = max(sum(a.nbytes for _, a in _flat(layer)) for layer in layers_of(model))
    del model
    seen: list[tuple[int, int]] = []
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    stage = load_tensor_stage(folder, 0, 2, 8, lambda *told: seen.append(told))
    peak, held = mx.get_peak_memory() - before, mx.get_active_memory() - before
    arrays = sum(1 for _ in _flat(stage._model))
    assert stage.owned_bytes <= held <= stage.owned_bytes + arrays * PAGE
    assert peak <= stage.owned_bytes + layer_bytes + arrays * PAGE
    assert peak < 0.8 * 8 * layer_bytes
    assert seen[0] == (0, stage.owned_bytes)
    assert seen[-1] == (stage.owned_bytes, stage.owned_bytes)
    assert len(seen) == 10


def _flat(module: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten  # noqa: PLC0415  beside its only use

    flat: Any = tree_flatten(module.parameters())
    return list(flat)


class Real(PretendedGroup):
    """As a group of MLX is, another object than the one that was split for."""


@pytest.mark.parametrize(
    ("name", "layers"), [("llama", 4), ("minimax", 4), ("deepseek_v3", 4), ("gpt_oss", 4), ("qwen3_5", 8)]
)
def test_after_joining_every_sum_goes_over_the_real_group(
    name: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = load_tensor_stage(written(tmp_path, name, layers), 1, 2, layers)
    groups: list[Any] = []
    group: Any = Real(2, 1)
    with pytest.raises(LocalStageError, match="rank 1 of 2, not for rank 0 of 2"):
        stage.join(Real(2, 0))  # type: ignore[arg-type]
    stage.join(group)
    with pytest.raises(LocalStageError, match="already"):
        stage.join(group)
    with pretended_communication() as seen:
        pretended = mx.distributed.all_sum

        def noted(x: mx.array, *, group: Any = None, stream: Any = None) -> mx.array:
            groups.append(group)
            return pretended(x, group=group, stream=stream)

        monkeypatch.setattr(mx.distributed, "all_sum", noted)
        run(stage, stage.make_caches(8), 1)
        monkeypatch.undo()
    assert seen.count >= len(groups) >= layers
    assert all(one is group for one in groups)


def test_what_cannot_be_split_is_told(tmp_path: Path) -> None:
    llama = write_tiny_model(tmp_path / "llama", "llama")
    with pytest.raises(LocalUnsplittableError, match="over 3 nodes"):
        load_tensor_stage(llama, 0, 3, LAYERS)
    with pytest.raises(LocalModelLoadError, match="different models"):
        load_tensor_stage(llama, 0, 2, LAYERS + 1)
    other = write_model(tmp_path / "gemma", "gemma", num_hidden_layers=LAYERS)
    with pytest.raises(LocalUnsplittableError, match="without tensor parallelism"):
        load_tensor_stage(other, 0, 2, LAYERS)
