"""What the kinds of a model's caches allow."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from macmesh_daemon.engine.cache_members import members
from macmesh_daemon.engine.caches import lowest_trim_limit
from macmesh_daemon.engine.unbatchable import REASONS

# mlx-lm is not typed.
_BATCHABLE: frozenset[Any] = frozenset({KVCache, RotatingKVCache, ArraysCache})


@dataclasses.dataclass(frozen=True, slots=True)
class CacheTraits:
    """What the scheduler must know of a model's caches; the same on every stage."""

    unbatchable: str = ""
    """Why requests cannot be rows of one batch; empty: they can."""
    trim_below_tokens: int | None = None
    """Up to which length caches can be cut back; None: any; 0: never."""


def cache_traits(entries: Iterable[Any], architecture: str = "") -> CacheTraits:
    """Looks at one request's caches, those of foreign layers too.

    Args:
        entries: mlx-lm's caches.
        architecture: Name of the mlx-lm module that implements the model.
    """
    flat = [member for entry in entries for member in members(entry)]
    return CacheTraits(_unbatchable(flat) or REASONS.get(architecture, ""), lowest_trim_limit(flat))


def _unbatchable(flat: list[Any]) -> str:
    for member in flat:
        if type(member) not in _BATCHABLE:
            return f"mlx-lm has no batch cache for {type(member).__name__}"
        if getattr(member, "keep", 0):
            return "mlx-lm's batch cache of a window keeps no first tokens"
    return ""
