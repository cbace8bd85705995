"""The cache objects of a model, and the arrays that each holds."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    BatchKVCache,
    BatchRotatingKVCache,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

BATCHES = frozenset({BatchKVCache, BatchRotatingKVCache})
"""mlx-lm's caches of several requests, whose lengths are arrays; an ``ArraysCache`` has as many rows as it has."""
KEYS_AND_VALUES = frozenset({KVCache, QuantizedKVCache, RotatingKVCache, ChunkedKVCache, *BATCHES})
"""Caches of ``cache.py`` that hold keys and values."""


def members(cache: Any) -> list[Any]:
    """The cache objects of a layer: a `CacheList` holds several."""
    inner = getattr(cache, "caches", None)
    return [cache] if inner is None else [member for part in inner for member in members(part)]


def is_compressed(cache: Any) -> bool:
    """Whether it is deepseek_v41's window with compressed groups, a class that is no part of ``cache.py``."""
    return type(cache).__name__ == "LayerCache" and hasattr(cache, "compress_kv")


def arrays_held(member: Any) -> list[mx.array]:
    """The arrays that count in a cache's ``nbytes``."""
    if is_compressed(member):
        found = [
            member.window,
            member.compress_kv,
            member.index_k,
            member.pending_kv,
            member.pending_gate,
        ]
    elif hasattr(member, "cache"):
        found = list(member.cache)
    elif type(member.keys) in {tuple, list}:
        found = [*member.keys, *member.values]
    else:
        found = [member.keys, member.values]
    return [array for array in found if array is not None]


def arrays_described(member: Any) -> list[mx.array]:
    """`arrays_held`, and the positions of the rows of a batch: all that a step may leave to be evaluated."""
    arrays = arrays_held(member)
    if type(member) in BATCHES:
        arrays += [member.offset, member.left_padding]
    return arrays


def detach(member: Any, stand_in: Callable[[mx.array], mx.array]) -> None:
    """Gives a cache of ``cache.py`` other arrays of the same shapes, so that the graph behind its own ends."""
    if hasattr(member, "cache"):
        member.cache = [array if array is None else stand_in(array) for array in member.cache]
    elif member.keys is not None:
        member.keys, member.values = stand_in(member.keys), stand_in(member.values)
