"""Caches never hold more than was reserved for them."""

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_lm_cache

from macmesh_daemon.engine.caches import allocate_at_once, round_up_tokens
from macmesh_daemon.worker.runner import set_memory_limits
from macmesh_placement import Reserves

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
        set_memory_limits()
        assert mx.set_cache_limit(0) == Reserves().buffer_cache_bytes
    finally:
        mx.set_cache_limit(before)
