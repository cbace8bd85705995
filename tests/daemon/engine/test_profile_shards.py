"""Tensor parallelism: what a node is predicted to hold equals what mlx-lm's own ``shard()`` leaves on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import _get_classes

from daemon.weights_only import own_bytes, weights_profile
from macmesh_daemon.engine.anatomy import examine
from macmesh_daemon.engine.profile import profile_folder
from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.engine.profile_shards import PretendedGroup, tensor_shards
from macmesh_daemon.engine.profile_trace import layers_of
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import ModelProfile, TensorShard
from zoo import CONFIGS, METAL_ONLY, build_model, config, write_config

NOT_SPLIT = {
    "prism_hadamard_qwen35": "its shard() does not know its own packed layers",
    "olmo": "its module cannot be imported without a stand-in, and it has no shard()",
}
"""Architectures with a ``shard()`` that mlx-lm cannot run, with the reason."""


def has_shard(name: str) -> bool:
    return name not in NOT_SPLIT and hasattr(_get_classes(config(name))[0], "shard")


SHARDED = sorted(name for name in CONFIGS.keys() - METAL_ONLY if has_shard(name))


@pytest.fixture(autouse=True)
def no_kernel_compilation() -> Iterator[None]:
    """On the CPU, mlx starts a C++ compiler for each fused kernel; shapes do not depend on it."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def shards_of(folder: Path) -> dict[int, TensorShard]:
    text = profile_folder(read_folder(folder, require_weights=False)).to_json_text()
    return {shard.ways: shard for shard in ModelProfile.from_json_text(text).tensor_shards}


@pytest.mark.parametrize("name", SHARDED)
def test_a_node_holds_what_is_predicted(name: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path, name, torch_dtype="float32")
    model = build(read_folder(folder, require_weights=False))
    (shard,) = tensor_shards(model, lambda part: weights_profile(part, examine(part)), (2,))
    real: Any = build_model(name)
    real.shard(PretendedGroup(2, 1))
    mx.eval(real.parameters())
    assert [layer.weight_bytes for layer in shard.layers] == [own_bytes(layer) for layer in layers_of(real)]
    assert shard.weight_bytes == own_bytes(real)
    assert shard.reductions_per_step > 0


def test_packed_weights_are_split_too(tmp_path: Path) -> None:
    quantised = {"group_size": 32, "bits": 4}
    folder = write_config(tmp_path, "llama", hidden_size=128, intermediate_size=256, quantization=quantised)
    shard = shards_of(folder)[2]
    real: Any = build(read_folder(folder, require_weights=False))
    real.shard(PretendedGroup(2, 1))
    assert shard.weight_bytes == own_bytes(real)


def test_caches_scores_and_activations_shrink_with_the_heads(tmp_path: Path) -> None:
    folder = write_config(tmp_path, "llama", num_attention_heads=8, num_key_value_heads=4)
    profile = profile_folder(read_folder(folder, require_weights=False))
    whole = profile.layers[0]
    assert [shard.ways for shard in profile.tensor_shards] == [2, 4]
    for shard in profile.tensor_shards:
        layer = shard.layers[0]
        assert whole.attention is not None
        assert layer.attention is not None
        assert layer.caches[0].bytes_per_token * shard.ways == whole.caches[0].bytes_per_token
        assert layer.attention.query_heads * shard.ways == whole.attention.query_heads
        assert layer.scratch == whole.scratch  # a bound
        assert shard.embedding_bytes == profile.embedding_bytes
        # One sum behind attention and one behind the multilayer perceptron, each of a hidden state.
        assert shard.reductions_per_step == 2 * len(shard.layers)
        hidden = config("llama")["hidden_size"] * profile.activation_bytes
        assert shard.reduced_bytes_per_token == shard.reductions_per_step * hidden


def test_latent_caches_are_whole_on_every_node(tmp_path: Path) -> None:
    profile = profile_folder(read_folder(write_config(tmp_path, "deepseek_v3"), require_weights=False))
    for shard in profile.tensor_shards:
        assert [layer.caches for layer in shard.layers] == [layer.caches for layer in profile.layers]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 16}),
        ("qwen3", {"num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 16}),
        ("deepseek_v3", {"num_attention_heads": 6, "num_key_value_heads": 6}),
    ],
)
def test_heads_that_do_not_divide_are_left_out(name: str, changes: dict[str, int], tmp_path: Path) -> None:
    """``shard()`` rounds six heads over four nodes down to one each, and says nothing."""
    assert sorted(shards_of(write_config(tmp_path, name, **changes))) == [2]


def test_nothing_is_read_even_where_shard_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some evaluate what they cut, which takes the memory of a whole model."""
    folder = write_config(tmp_path, "llama", hidden_size=1024, intermediate_size=4096)
    model = build(read_folder(folder, require_weights=False))
    original: Any = getattr(type(model), "shard")  # noqa: B009  Module itself has none

    def shard(self: Any, group: Any) -> None:
        original(self, group)
        mx.eval(self.parameters())

    monkeypatch.setattr(type(model), "shard", shard)
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    shards = tensor_shards(model, lambda part: weights_profile(part, examine(part)), (2,))
    assert shards[0].weight_bytes > 90_000_000
    assert mx.get_peak_memory() - before < 10**6


def test_an_architecture_without_shard_has_none(tmp_path: Path) -> None:
    assert shards_of(write_config(tmp_path, "gemma")) == {}


def test_a_vocabulary_may_be_split(tmp_path: Path) -> None:
    folder = write_config(tmp_path, "qwen3_5")
    profile = profile_folder(read_folder(folder, require_weights=False))
    assert json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"] == profile.vocab_size
    assert profile.tensor_shards[0].head_bytes * 2 == profile.head_bytes
