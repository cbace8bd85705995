"""The cache objects of a model, and the arrays that each holds."""

from typing import Any

import mlx.core as mx


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
    else:
        found = [member.keys, member.values]
    return [array for array in found if array is not None]
