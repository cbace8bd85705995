"""Cuts, grows and shrinks mlx-lm's cache of one request and one layer, keeping what it holds."""

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from macmesh_daemon.engine.cache_members import arrays_held

ALLOCATION_TOKENS = 256
"""mlx-lm's caches grow in steps of so many tokens."""


def round_up_tokens(tokens: int) -> int:
    """Tokens that a cache of so many is allocated for."""
    return -(-tokens // ALLOCATION_TOKENS) * ALLOCATION_TOKENS


def trim_below(member: Any) -> int | None:
    """Up to which length a cache can be cut back; None: any. What it dropped or summed up is lost."""
    kind = type(member)
    if kind in {KVCache, QuantizedKVCache, BatchKVCache}:
        return None
    if kind in {RotatingKVCache, BatchRotatingKVCache}:
        return int(member.max_size) - 1
    return int(member.chunk_size) if kind is ChunkedKVCache else 0


def refit(member: Any, tokens: int) -> None:
    """Gives a cache the rows of a request of so many tokens, and evaluates it.

    What keeps every token is allocated at once; what has a window is cut down to what the ledger charges for so many.
    """
    kind = type(member)
    if kind in {KVCache, QuantizedKVCache}:
        rows = round_up_tokens(tokens)
        member.step = rows
        held = arrays_held(member)
        if held and held[0].shape[2] != rows:
            _reallocate(member, rows)
    elif kind is RotatingKVCache:
        most = min(member.max_size, tokens + ALLOCATION_TOKENS - 1)
        if member.keys is not None and member.keys.shape[2] > most and not member.keep:
            member.keys, member.values = (
                joined(ring_parts(array, member._idx, member.offset, member.max_size))
                for array in (member.keys, member.values)
            )
            member._idx = member.keys.shape[2]
    elif kind is ChunkedKVCache and member.keys is not None:
        most = min(member.chunk_size, tokens) + ALLOCATION_TOKENS
        before = member.keys.shape[2]
        member.maybe_trim_front()
        if member.keys.shape[2] != before or before > most:
            valid = member.offset - member.start_position
            member.keys, member.values = (
                joined([array[..., :valid, :]]) for array in (member.keys, member.values)
            )
    elif kind is ArraysCache:
        member.cache = [array if array is None else joined([array], axis=0) for array in member.cache]
    mx.eval(arrays_held(member))


def _reallocate(member: Any, rows: int) -> None:
    for name in ("keys", "values"):
        held = getattr(member, name)
        if type(member) is KVCache:
            setattr(member, name, _with_rows(held, member.offset, rows))
        else:
            setattr(member, name, tuple(_with_rows(array, member.offset, rows) for array in held))


def _with_rows(array: mx.array, kept: int, rows: int) -> mx.array:
    new = mx.zeros((*array.shape[:2], rows, array.shape[3]), array.dtype)
    if array.shape[3]:
        new[:, :, :kept] = array[:, :, :kept]
    return new


def ring_parts(array: mx.array, index: int, offset: int, window: int) -> list[mx.array]:
    """The rows that a ring keeps, oldest first, as views.

    Args:
        array: Keys or values of a `RotatingKVCache`, shape (rows of a batch, heads, tokens, size).
        index: Where the next token would be written, unless that is the end.
        offset: Tokens that went through.
        window: Most rows that count.
    """
    if index == array.shape[2] or index >= offset:
        parts = [array[..., :index, :]]
    else:
        parts = [array[..., index:, :], array[..., :index, :]]
    return last_rows(parts, min(offset, window))


def last_rows(parts: list[mx.array], count: int) -> list[mx.array]:
    """The last so many rows (axis 2) of what the parts make when joined, as views."""
    excess = sum(part.shape[2] for part in parts) - count
    kept = []
    for part in parts:
        dropped = min(excess, part.shape[2])
        excess -= dropped
        if dropped < part.shape[2]:
            kept.append(part[:, :, dropped:])
    return kept


def joined(parts: list[mx.array], axis: int = 2) -> mx.array:
    """A new array of the parts' content, never an alias of one of them."""
    first = parts[0]
    # Joining with nothing never aliases, as `mx.contiguous` and `mx.array` may, and changes no bit.
    nothing = mx.zeros((*first.shape[:axis], 0, *first.shape[axis + 1 :]), first.dtype)
    return mx.concatenate([*parts, nothing], axis=axis)
