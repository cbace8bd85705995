"""Caches never hold more than was reserved for them."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.utils import load_model

from macmesh.v1 import types_pb2
from macmesh_daemon.engine.caches import allocate_at_once, round_up_tokens
from macmesh_daemon.engine.stage import load_stage
from macmesh_daemon.worker.memory_limits import set_memory_limits
from macmesh_placement import Reserves
from zoo import write_model
from zoo.cachetable import exact_memory

# mlx-lm is not typed.
CACHES: Any = mlx_lm_cache
HEADS, HEAD_SIZE, PROMPT = 2, 16, 300
RESERVED_TOKENS = round_up_tokens(PROMPT + 1)


def _rows_after_prefill_and_one_step(cache: Any) -> int:
    allocate_at_once(cache, RESERVED_TOKENS)
    for tokens in (PROMPT, 1):
        rows = mx.zeros((1, HEADS, tokens, HEAD_SIZE))
        mx.eval(cache.update_and_fetch(rows, rows))
    count: int = cache.keys.shape[2]
    return count


def test_a_growing_cache_is_allocated_once() -> None:
    assert _rows_after_prefill_and_one_step(CACHES.KVCache()) == RESERVED_TOKENS


@pytest.mark.parametrize(
    "cache", [CACHES.RotatingKVCache(max_size=2000), CACHES.ChunkedKVCache(chunk_size=2000)]
)
def test_a_window_above_the_reservation_grows_by_its_own_step(
    cache: Any,
) -> None:
    assert _rows_after_prefill_and_one_step(cache) <= PROMPT + 256


def test_members_of_a_list_are_allocated_too() -> None:
    inner = CACHES.KVCache()
    allocate_at_once(CACHES.CacheList(inner, CACHES.KVCache()), RESERVED_TOKENS)

    assert inner.step == RESERVED_TOKENS


def test_freed_buffers_are_kept_up_to_the_ledgers_slack() -> None:
    before = mx.set_cache_limit(0)
    try:
        set_memory_limits(types_pb2.Ledger())
        assert mx.set_cache_limit(0) == Reserves().buffer_cache_bytes
    finally:
        mx.set_cache_limit(before)


def test_arrays_are_held_to_what_the_ledger_charges_for_them() -> None:
    kept = Reserves().buffer_cache_bytes
    lines = {"weights": 5 * kept, "cache": kept, "allocator_slack": kept + 7, "runtime_reserve": 9 * kept}
    ledger = types_pb2.Ledger()
    for name, size in lines.items():
        ledger.entries.add(name=name, size_bytes=size)
    cache_limit, memory_limit = mx.set_cache_limit(0), mx.set_memory_limit(1 << 40)
    try:
        set_memory_limits(ledger)
        assert mx.set_memory_limit(1 << 40) == 6 * kept + 7
    finally:
        mx.set_cache_limit(cache_limit)
        mx.set_memory_limit(memory_limit)


@pytest.mark.parametrize(("name", "layers"), [("jamba", 8), ("mamba2", 6), ("deepseek_v41", 8)])
def test_a_prefill_step_leaves_no_buffer_behind_and_changes_no_bit(
    name: str, layers: int, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "m", name)
    model: Any
    model, _ = load_model(folder)
    steps = [mx.array([[(7 * i * i + 3) % 300 + 4 for i in range(count)]]) for count in (64, 30, 1, 1)]
    with exact_memory():
        stage = load_stage(folder, 0, layers, layers)
        plain = CACHES.make_prompt_cache(model)
        for tokens in (2, 1):  # what the models make once and keep
            mx.eval(model(mx.zeros((1, tokens), mx.int32), cache=CACHES.make_prompt_cache(model)))
            caches = stage.make_caches(4)
            stage.evaluate(stage.step([mx.zeros((1, tokens), mx.int32)], caches), caches)
        expected = []
        for inputs in steps:
            expected.append(model(inputs, cache=plain))
            mx.eval(expected[-1], [cache.state for cache in plain])
        del plain, caches
        idle = mx.get_active_memory()
        caches = stage.make_caches(100)
        for inputs, logits in zip(steps, expected, strict=True):
            result = stage.step([inputs], caches)
            stage.evaluate(result, caches)
            assert mx.array_equal(result[0], logits)
            del result
            held = mx.get_active_memory() - idle
            if inputs.shape[1] > 1:
                # deepseek_v41 counts its offset in the state, as an array made when it is asked for.
                assert abs(held - caches.nbytes) <= 4 * layers
