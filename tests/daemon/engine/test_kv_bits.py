"""Costs of quantised caches against mlx-lm's own ``QuantizedKVCache``."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_lm_cache

from daemon.tiny_models import profiled, write_config
from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import LocalProfileError, ModelProfile

# mlx-lm is not typed.
CACHES: Any = mlx_lm_cache
WIDE_LATENT = {"kv_lora_rank": 64, "qk_rope_head_dim": 32}


def with_kv_bits(profile: ModelProfile, bits: int, group_size: int) -> ModelProfile:
    return ModelProfile.from_json_text(profile.with_kv_bits(bits, group_size).to_json_text())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_bytes_equal_those_of_the_real_class(bits: int, group_size: int, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", "qwen3")
    plain = profiled(folder)
    profile = with_kv_bits(plain, bits, group_size)
    model: Any = build(read_folder(folder, require_weights=False))
    for history in ((1, 1), (255, 1, 1), (257, 2), (130, 130, 130, 1)):
        for batch in (1, 3):
            caches = [CACHES.QuantizedKVCache(group_size=group_size, bits=bits) for _ in model.layers]
            for tokens in history:
                model(mx.zeros((batch, tokens), mx.int32), cache=caches)
            for layer, cache in zip(profile.layers, caches, strict=True):
                assert [piece.source for piece in layer.caches] == ["QuantizedKVCache"]
                assert layer.caches[0].bytes_after(history, batch=batch) == cache.nbytes
    assert profile.kv_bits == bits
    assert profile.layers[0].cache_bytes(700) < plain.layers[0].cache_bytes(700)


def test_a_preallocated_cache_has_the_reserved_bytes(tmp_path: Path) -> None:
    profile = with_kv_bits(profiled(write_config(tmp_path / "m", "qwen3")), 4, 64)
    cache = CACHES.QuantizedKVCache(group_size=64, bits=4)
    cache.step = 768
    rows = mx.zeros((1, 2, 300, 64), mx.bfloat16)
    cache.update_and_fetch(rows, rows)
    assert profile.layers[0].caches[0].reserved_bytes(700) == cache.nbytes


def test_attention_leaves_the_fused_kernel(tmp_path: Path) -> None:
    plain = profiled(write_config(tmp_path / "m", "qwen3"))
    attention = plain.with_kv_bits(8).layers[0].attention
    assert plain.layers[0].attention is not None
    assert plain.layers[0].attention.fused
    assert attention is not None
    assert not attention.fused
    assert attention.scratch_bytes(1000, 10, fused_kernel=True) >= 2 * 4 * 10 * 1000 * 2


@pytest.mark.parametrize("bits", [5, 6])
def test_widths_that_the_real_cache_cannot_take_are_refused(bits: int, tmp_path: Path) -> None:
    profile = profiled(write_config(tmp_path / "m", "qwen3", head_dim=128))
    with pytest.raises(LocalProfileError, match=f"rows of 128 elements.*cache of {bits} bits"):
        profile.with_kv_bits(bits)
    rows = mx.zeros((1, 2, 3, 128), mx.bfloat16)
    with pytest.raises(ValueError, match="broadcast"):
        CACHES.QuantizedKVCache(group_size=64, bits=bits).update_and_fetch(rows, rows)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma3_text", "kind ring"),
        ("mamba2", "constant caches only"),
        ("llama", "rows of 8 elements, which groups of 64 do not divide"),
    ],
)
def test_what_cannot_be_quantised_is_named(name: str, message: str, tmp_path: Path) -> None:
    profile = profiled(write_config(tmp_path / "m", name))
    with pytest.raises(LocalProfileError, match=message):
        profile.with_kv_bits(8)


@pytest.mark.parametrize(("bits", "group_size"), [(7, 64), (0, 64), (8, 48)])
def test_what_mlx_does_not_know_is_refused(bits: int, group_size: int, tmp_path: Path) -> None:
    profile = profiled(write_config(tmp_path / "m", "qwen3"))
    with pytest.raises(LocalProfileError, match="must be one of"):
        profile.with_kv_bits(bits, group_size)
    with pytest.raises(LocalProfileError, match="already of 8 bits"):
        profile.with_kv_bits(8).with_kv_bits(4)


def test_states_beside_growing_caches_stay_as_they_are(tmp_path: Path) -> None:
    plain = profiled(write_config(tmp_path / "m", "qwen3_next", head_dim=64))
    profile = plain.with_kv_bits(8)
    for before, after in zip(plain.layers, profile.layers, strict=True):
        assert before.caches[0].kind == after.caches[0].kind
        assert (before == after) == (before.caches[0].kind == "constant")


def test_code_that_cannot_run_on_quantised_caches_is_found_out(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", "deepseek_v3", **WIDE_LATENT)
    profile = profiled(folder)
    model: Any = build(read_folder(folder, require_weights=False))
    caches = [CACHES.QuantizedKVCache(group_size=32, bits=8) for _ in model.layers]
    with pytest.raises(AttributeError, match="swapaxes"):
        model(mx.zeros((1, 3), mx.int32), cache=caches)
    assert "swapaxes" in profile.kv_bits_problem
    with pytest.raises(LocalProfileError, match="cannot run on quantised caches"):
        profile.with_kv_bits(8, 32)
