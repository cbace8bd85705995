"""Profiles against mlx-lm itself: what is predicted through JSON equals what real models and caches hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import load_model

import zoo
from daemon.tiny_models import CONFIGS, costs_of, profiled, write_config
from macmesh_daemon.engine.anatomy import examine
from macmesh_daemon.engine.cache_members import members
from macmesh_daemon.engine.payload import bytes_per_token
from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.models.errors import LocalArchitectureError, LocalModelFolderError
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import CachePiece, Reserves, StageDemand, stage_ledger

QUANTISED = {"group_size": 32, "bits": 4}


def save_weights(folder: Path, *, shards: int = 1, without: tuple[str, ...] = ()) -> Any:
    """Gives the folder the weights that its config describes; returns the model."""
    model: Any = build(read_folder(folder, require_weights=False))
    flat: Any = tree_flatten(model.parameters())
    weights = {name: value for name, value in flat if name not in without}
    mx.eval(weights)
    names = sorted(weights)
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), weights)
    else:
        for index in range(shards):
            part = {name: weights[name] for name in names[index::shards]}
            mx.save_safetensors(str(folder / f"model-{index + 1:05}-of-{shards:05}.safetensors"), part)
    return model


def own_bytes(model: Any) -> int:
    flat: Any = tree_flatten(model.parameters())
    return sum(array.nbytes for _, array in flat)


@pytest.fixture
def no_kernel_compilation() -> Iterator[None]:
    """On the CPU, mlx starts a C++ compiler for each fused kernel; shapes do not depend on it."""
    mx.disable_compile()
    yield
    mx.enable_compile()


#: Every architecture is compared elsewhere; here the way through a folder's files is, for one of each kind.
FEW = ("llama", "minimax", "qwen3_next", "gemma3_text")


@pytest.mark.parametrize("name", FEW)
def test_predicted_weights_equal_the_loaded_parameters(name: str, tmp_path: Path) -> None:
    from_config = costs_of(write_config(tmp_path / "m", name))
    save_weights(tmp_path / "m", shards=2)
    from_headers = costs_of(tmp_path / "m")
    loaded: Any
    loaded, _ = load_model(tmp_path / "m")
    assert from_config.total_weight_bytes == from_headers.total_weight_bytes == own_bytes(loaded)
    assert (from_config.weights_source, from_headers.weights_source) == ("config", "headers")
    assert from_headers.tied == CONFIGS[name]["tie_word_embeddings"]
    for profile_layer, layer in zip(from_headers.layers, loaded.layers, strict=True):
        assert profile_layer.weight_bytes == own_bytes(layer)
    assert from_headers.shared_bytes == 0
    assert from_headers.norm_bytes > 0


HISTORIES = [(1,), (23, 2, 1), (24, 1, 1), (25, 1), (255, 1, 1), (257, 100, 1, 1)]


@pytest.mark.usefixtures("no_kernel_compilation")
@pytest.mark.parametrize("name", FEW)
def test_predicted_cache_bytes_equal_the_real_ones(name: str, tmp_path: Path) -> None:
    """Real caches after computed steps, growing ones preallocated to the reservation as the engine does."""
    # The CPU multiplies experts in float32 only.
    dtype = "float32" if name in {"qwen3_moe", "minimax", "deepseek_v3", "qwen3_next"} else "bfloat16"
    folder = write_config(tmp_path / "m", name, torch_dtype=dtype)
    profile = costs_of(folder)
    pieces = [piece for layer in profile.layers for piece in layer.caches]
    model: Any = build(read_folder(folder, require_weights=False))
    for steps in HISTORIES:
        total = sum(steps)
        caches = make_prompt_cache(model)
        flat = [member for cache in caches for member in members(cache)]
        for cache in flat:
            if type(cache) is KVCache:
                cache.step = -(-total // 256) * 256
        for count in steps:
            logits = model(mx.zeros((1, count), dtype=mx.int32), cache=caches)
            mx.eval(logits, [cache.state for cache in caches])
        for piece, cache in zip(pieces, flat, strict=True):
            _assert_predicted(piece, cache, steps)


def _assert_predicted(piece: CachePiece, cache: Any, steps: tuple[int, ...]) -> None:
    total = sum(steps)
    reserve = total if piece.kind == "growing" else 0
    assert piece.bytes_after(steps, reserve_tokens=reserve) == cache.nbytes
    if piece.kind in {"growing", "constant"}:
        assert piece.reserved_bytes(total) == cache.nbytes + piece.decode_view_bytes
    else:
        assert cache.nbytes <= piece.reserved_bytes(total) + piece.prefill_bytes(total, max(steps))
        if steps[-1] == 1 and len(steps) > 1:
            assert cache.nbytes <= piece.reserved_bytes(total)


def test_the_ledger_charges_the_real_cache_bytes(tmp_path: Path) -> None:
    profile = costs_of(write_config(tmp_path / "m", "qwen3"))
    demand = StageDemand(context_tokens=700, slots=3, prefill_chunk_tokens=64, reserves=Reserves())
    ledger = stage_ledger(profile, demand, first_layer=1, end_layer=3, usable_bytes=0, fused_attention=True)
    assert ledger.cache_bytes == 3 * 2 * 768 * (2 * 2 * 64 * 2)


def test_a_head_that_the_weights_lack_is_tied(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", "gemma3_text")
    save_weights(folder, without=("lm_head.weight",))
    profile = costs_of(folder)
    assert (profile.tied, profile.head_bytes) == (True, 0)
    assert profile.tail_bytes == profile.norm_bytes + profile.embedding_bytes


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("llama", {"growing"}),
        ("gemma3_text", {"growing", "ring"}),
        ("qwen3_next", {"growing", "constant"}),
        ("mamba2", {"constant"}),
    ],
)
def test_cache_kinds_are_recognised(name: str, kinds: set[str], tmp_path: Path) -> None:
    profile = costs_of(write_config(tmp_path / "m", name))
    assert {piece.kind for layer in profile.layers for piece in layer.caches} == kinds
    assert all(layer.caches for layer in profile.layers)


def test_only_the_chosen_experts_are_active(tmp_path: Path) -> None:
    profile = costs_of(write_config(tmp_path / "m", "qwen3_moe"))
    dense, sparse = profile.layers[0], profile.layers[1]
    assert dense.active_weight_bytes == dense.weight_bytes
    experts = 8 * 3 * 32 * 16 * 2
    assert sparse.weight_bytes - sparse.active_weight_bytes == experts * 6 // 8
    assert sparse.active_parameters * 2 == sparse.active_weight_bytes


def test_attention_facts_follow_the_traced_call(tmp_path: Path) -> None:
    qwen3 = costs_of(write_config(tmp_path / "a", "qwen3")).layers[0].attention
    assert qwen3 is not None
    assert (qwen3.query_heads, qwen3.fused, qwen3.traced) == (4, True, False)
    latent = costs_of(write_config(tmp_path / "b", "deepseek_v3")).layers[0].attention
    assert latent is not None
    assert (latent.fused, latent.traced) == (False, True)
    sliding = costs_of(write_config(tmp_path / "c", "gemma3_text")).layers[0].attention
    assert sliding is not None
    assert sliding.window_tokens == 24
    assert costs_of(write_config(tmp_path / "d", "mamba2")).layers[0].attention is None


def test_quantised_models_count_packed_weights_scales_and_exceptions(tmp_path: Path) -> None:
    gate = {
        f"model.layers.{index}.block_sparse_moe.gate": {"group_size": 32, "bits": 8} for index in range(4)
    }
    folder = write_config(tmp_path / "m", "minimax", quantization={**QUANTISED, **gate})
    from_config = profiled(folder)
    model = save_weights(folder)
    assert profiled(folder).layers == from_config.layers
    assert from_config.total_weight_bytes == own_bytes(model)
    assert from_config.embedding_bytes == 96 * (32 // 2 + 2 * 2)
    assert from_config.activation_bytes == 2
    assert model.layers[0].block_sparse_moe.gate.bits == 8


def test_nothing_is_computed_or_allocated(tmp_path: Path) -> None:
    folder = write_config(
        tmp_path / "m",
        "llama",
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=8,
        vocab_size=128_256,
    )
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    profile = profiled(folder)
    assert profile.total_weight_bytes > 10**10
    assert mx.get_peak_memory() - before < 10**6


def test_a_trillion_parameters_are_profiled_like_a_thousand(tmp_path: Path) -> None:
    folder = write_config(
        tmp_path / "m",
        "deepseek_v3",
        hidden_size=7168,
        num_hidden_layers=10,
        n_routed_experts=384,
        moe_intermediate_size=14_336,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
    )
    profile = profiled(folder)
    assert profile.total_weight_bytes > 2 * 10**12
    assert profile.layers[5].cache_bytes(131_072) == 131_072 * (512 + 64) * 2


def test_the_reason_against_a_cut_follows_the_config(tmp_path: Path) -> None:
    moe = costs_of(zoo.write_config(tmp_path / "a", "gemma4_moe"))
    shared = costs_of(zoo.write_config(tmp_path / "b", "gemma4"))
    assert (moe.cut_points, moe.cut_reason) == ((1, 2, 3, 4, 5), "")
    assert shared.cut_points == (1, 2, 3, 4)
    assert shared.cut_reason == (
        "layers 6 to 9 read keys and values of layer 4 and later ones, "
        "so that it can be cut before layer 1 to 4 only"
    )


#: Bytes of a float32 hidden state of these models.
_HIDDEN = 64 * 4


@pytest.mark.parametrize(
    ("name", "handed_on"),
    [
        ("llama", _HIDDEN),
        ("gemma4_moe", _HIDDEN),
        ("rwkv7", 2 * _HIDDEN),  # and the first layer's values
        ("talkie", 2 * _HIDDEN),  # and the embedding
        ("hunyuan", _HIDDEN + 2 * 2 * 16 * 4),  # and keys and values of a pair
        ("gemma4", _HIDDEN + 9 * 16 * 4),  # and inputs of the nine later layers
        ("gemma3n", 4 * _HIDDEN + 9 * 16 * 4),  # four streams
        ("kimi_k3", _HIDDEN + 3 * (_HIDDEN + 4)),  # and three blocks with their norms
        # four streams, their mix, and a flag for each two of 512 / 4 keys, and one more
        ("deepseek_v41", 4 * _HIDDEN + 4 * 4 + 64 + 1),
    ],
)
def test_bytes_of_a_token_that_cross_a_cut(name: str, handed_on: int, tmp_path: Path) -> None:
    folder = zoo.write_config(tmp_path / "m", name, torch_dtype="float32", dtype="float32")
    model = build(read_folder(folder, require_weights=False))
    assert bytes_per_token(model, examine(model)) == handed_on


def test_layers_called_part_by_part_are_watched(tmp_path: Path) -> None:
    profile = profiled(zoo.write_config(tmp_path / "m", "iquestloopcoder"))
    assert [[piece.kind for piece in layer.caches] for layer in profile.layers] == [["growing", "ring"]] * 6
    assert all(layer.attention is not None and layer.scratch.live for layer in profile.layers)
    assert profile.hidden_size == zoo.CONFIGS["iquestloopcoder"]["hidden_size"]


def test_where_a_model_may_be_cut(tmp_path: Path) -> None:
    assert costs_of(write_config(tmp_path / "a", "llama")).cut_points == (1, 2, 3)
    looped = write_config(tmp_path / "b", "llama", model_type="nanbeige", head_dim=8, num_loops=2)
    profile = costs_of(looped)
    assert profile.cut_points == ()
    assert "more than once" in profile.cut_reason


def test_unsupported_and_broken_models_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(LocalArchitectureError, match="alchemy"):
        profiled(write_config(tmp_path / "a", "llama", model_type="alchemy"))
    with pytest.raises(LocalArchitectureError, match="code of its own"):
        profiled(write_config(tmp_path / "b", "llama", model_file="model.py"))
    with pytest.raises(LocalModelFolderError, match="llama"):
        profiled(write_config(tmp_path / "c", "llama", num_attention_heads="many"))
    folder = write_config(tmp_path / "d", "llama")
    save_weights(folder)
    write_config(folder, "llama", num_hidden_layers=5)
    with pytest.raises(LocalModelFolderError, match=r"missing: model\.layers\.4"):
        profiled(folder)
