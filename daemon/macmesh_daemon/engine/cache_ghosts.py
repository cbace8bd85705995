"""Caches of foreign layers: advanced as if their layer had run, at no bytes.

Masks, windows and positions of the owned layers may be made from the cache of another layer. Keys and values of head
size 0 go through the cache's own code, so that its offset, ring index and window stay right. What that code would do
to nothing at every decoded token is written out here, as it costs several array operations for each foreign layer.
"""

import dataclasses
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, KVCache, QuantizedKVCache, RotatingKVCache

from macmesh_daemon.engine.cache_members import is_compressed


@dataclasses.dataclass
class Positions:
    """Lengths of a batch's rows, one array for all ghosts, so that a step describes their sum once."""

    before: mx.array
    """When the step began."""
    after: mx.array
    """When it ends."""

    def advance(self, tokens: int) -> None:
        """Begins a step of so many tokens."""
        self.before, self.after = self.after, self.after + tokens


def is_ghost(member: Any) -> bool:
    """Whether a cache of plain keys and values has been advanced by `advance_ghost` so far."""
    return member.keys is not None and not member.keys.shape[3] and not member.values.shape[3]


def advance_ghost(entry: Any, tokens: int, positions: Positions | None = None) -> None:
    """Advances a foreign layer's cache without storing anything.

    Args:
        entry: mlx-lm's cache of the layer.
        tokens: Of the step.
        positions: Of the batch, where the cache is one of a batch.
    """
    kind = type(entry)
    if kind is QuantizedKVCache or (kind is KVCache and entry.keys is not None):
        entry.offset += tokens  # nothing cannot be quantised, and the offset is all that others see
    elif kind is BatchKVCache:
        entry._idx += tokens
        entry.offset = positions.after if positions else entry.offset + tokens
    elif hasattr(entry, "caches"):
        for inner in entry.caches:
            advance_ghost(inner, tokens, positions)
    elif tokens == 1 and kind is RotatingKVCache and _is_full(entry):
        entry._idx = (entry.keep if entry._idx == entry.max_size else entry._idx) + 1
        entry.offset += 1
    elif tokens == 1 and kind is BatchRotatingKVCache and _is_full(entry):
        _advance_full_ring(entry, positions)
    elif is_compressed(entry):
        entry.update_window(mx.zeros((1, tokens, 0)))
        entry.window = mx.zeros(entry.window.shape, entry.window.dtype)
    elif hasattr(entry, "update_and_fetch"):
        rows = entry.left_padding.size if kind is BatchRotatingKVCache else 1
        nothing = mx.zeros((rows, 1, tokens, 0))
        entry.update_and_fetch(nothing, nothing)
        # Nothing ever evaluates what was written into nothing: without a new array the graph grows by each step.
        entry.keys = entry.values = mx.zeros(entry.keys.shape)
    elif hasattr(entry, "advance"):
        entry.advance(tokens)


def _is_full(ring: Any) -> bool:
    return ring.keys is not None and ring.keys.shape[2] == ring.max_size


def _advance_full_ring(ring: Any, positions: Positions | None) -> None:
    if ring._idx == ring.max_size:
        ring.rotated, ring._idx = True, 0
    if ring.rotated:
        ring.left_padding = ring.left_padding - 1
    ring._offset += 1
    ring._idx += 1
    ring.offset = positions.after if positions else ring.offset + 1
