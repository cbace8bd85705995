"""One layer's caches of several requests: made of rows, and taken apart into rows, of mlx-lm's classes.

mlx-lm's own ``merge``, ``extend`` and ``filter`` allocate what the rows hold now and grow from there. Here rows are
written into caches of the full capacity, so that no decode step allocates.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    CacheList,
    KVCache,
    RotatingKVCache,
)

from macmesh_daemon.engine.cache_fit import joined, last_rows, refit, ring_parts
from macmesh_daemon.engine.cache_ghosts import Positions, is_ghost

# mlx-lm is not typed.
_ARRAYS_CACHE: Any = ArraysCache
_CACHE_LIST: Any = CacheList
_KV_CACHE: Any = KVCache
_RING: Any = RotatingKVCache


@dataclasses.dataclass(frozen=True, slots=True)
class RowCache:
    """One request's part of one layer's cache."""

    entry: Any
    """Of one request, or of a batch."""
    row: int | None
    """In the batch; None: the cache is this request's alone."""
    length: int
    """Tokens that went through."""

    def inner(self) -> list["RowCache"]:
        """The parts of a `CacheList`."""
        return [RowCache(entry, self.row, self.length) for entry in self.entry.caches]

    def view(self, array: mx.array) -> mx.array:
        """This row of an array whose first axis are the rows."""
        return array if self.row is None else array[self.row : self.row + 1]

    def parts(self, array: mx.array) -> list[mx.array]:
        """The tokens kept of keys or values, oldest first, as views."""
        entry, array = self.entry, self.view(array)
        kind = type(entry)
        if kind is KVCache:
            return [array[:, :, : entry.offset]]
        if kind is BatchKVCache:
            return [array[:, :, entry._idx - self.length : entry._idx]]
        window = entry.max_size
        if kind is RotatingKVCache:
            return ring_parts(array, entry._idx, entry.offset, window)
        index = entry._idx
        ordered = [array[:, :, index:], array[:, :, :index]] if entry.rotated else [array[:, :, :index]]
        return last_rows(ordered, min(self.length, window))


def batch_entry(rows: Sequence[RowCache], capacity_tokens: int, positions: Positions) -> Any:
    """Describes one layer's cache of a batch, of these rows in this order.

    Args:
        rows: Of one class each, single or of a batch.
        capacity_tokens: Tokens to allocate, where every token is kept.
        positions: Of the rows.
    """
    first = rows[0].entry
    if type(first) is _CACHE_LIST:
        return _CACHE_LIST(
            *(
                batch_entry(inner, capacity_tokens, positions)
                for inner in zip(*(row.inner() for row in rows), strict=True)
            )
        )
    if type(first) is _ARRAYS_CACHE:
        return _states([row.entry.cache for row in rows], rows)
    kept = [row.length for row in rows]
    if type(first) in {KVCache, BatchKVCache}:
        longest = max(kept)
        batch: Any = BatchKVCache([longest - count for count in kept])
        allocated = capacity_tokens
    else:
        kept = [min(count, first.max_size) for count in kept]
        longest = max(kept)
        batch = BatchRotatingKVCache(first.max_size, [longest - count for count in kept])
        batch._offset = longest
        allocated = min(capacity_tokens, first.max_size)
    batch._idx = longest
    batch.offset = positions.after[...]
    filled = [row for row in rows if row.entry.keys is not None]
    if filled:
        batch.keys = _written(rows, kept, longest, allocated, "keys")
        batch.values = _written(rows, kept, longest, allocated, "values")
    return batch


def _written(rows: Sequence[RowCache], kept: list[int], longest: int, allocated: int, name: str) -> mx.array:
    like: mx.array = getattr(rows[0].entry, name)
    new = mx.zeros((len(rows), like.shape[1], allocated, like.shape[3]), like.dtype)
    if is_ghost(rows[0].entry):
        return new
    for index, row in enumerate(rows):
        start = longest - kept[index]
        for part in row.parts(getattr(row.entry, name)):
            new[index : index + 1, :, start : start + part.shape[2]] = part
            start += part.shape[2]
    return new


def _states(states: list[list[mx.array | None]], rows: Sequence[RowCache]) -> Any:
    batch = _ARRAYS_CACHE(len(states[0]))
    for slot in range(len(states[0])):
        found = [
            None if (array := state[slot]) is None else row.view(array)
            for state, row in zip(states, rows, strict=True)
        ]
        arrays = [array for array in found if array is not None]
        if arrays:
            shape = max(array.shape for array in arrays)
            batch.cache[slot] = joined([_padded(array, shape, arrays[0].dtype) for array in found], axis=0)
    return batch


def _padded(array: mx.array | None, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """A state of that shape; a short history of token ids begins with zeros, as a model over n-grams has it."""
    if array is None:
        return mx.zeros(shape, dtype)
    return mx.pad(array, [(wide - narrow, 0) for wide, narrow in zip(shape, array.shape, strict=True)])


def single_entry(row: RowCache, tokens: int) -> Any:
    """One request's cache, of the first so many tokens of a row of a batch; evaluated."""
    if type(row.entry) is _CACHE_LIST:
        return _CACHE_LIST(*(single_entry(inner, tokens) for inner in row.inner()))
    if type(row.entry) is _ARRAYS_CACHE:
        single = _ARRAYS_CACHE(len(row.entry.cache))
        single.cache = [None if array is None else row.view(array) for array in row.entry.cache]
        refit(single, tokens)
        return single
    ring = type(row.entry) is BatchRotatingKVCache
    cache: Any = _RING(row.entry.max_size) if ring else _KV_CACHE()
    cache.offset = row.length
    if row.entry.keys is not None:
        cache.keys, cache.values = (_single_rows(row, array) for array in (row.entry.keys, row.entry.values))
        if ring:
            cache._idx = cache.keys.shape[2]
    cache.trim(row.length - tokens)
    refit(cache, tokens)
    return cache


def _single_rows(row: RowCache, array: mx.array) -> mx.array:
    parts = row.parts(array)
    # A view will do where the rows are written into a new allocation next; a ring keeps what it is given.
    return joined(parts) if type(row.entry) is BatchRotatingKVCache else parts[0]
