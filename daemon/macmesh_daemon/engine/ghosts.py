"""The caches of layers that other stages own: they hold nothing, but count, as masks are made from them."""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from macmesh_daemon.engine.cache_members import is_compressed, members


def advance_ghost(entry: Any, rows: int, tokens: int) -> None:
    """Advances a foreign layer's cache without storing anything.

    Masks and windows of the owned layers may be made from it. Keys and values of head size 0 go through the
    cache's own code, so that its offset, ring index and window stay right.

    Args:
        entry: one of mlx-lm's caches, a batch's or a single request's.
        rows: requests in the step.
        tokens: of each.
    """
    for member in members(entry):
        _advance(member, rows, tokens)


def _advance(member: Any, rows: int, tokens: int) -> None:
    if type(member) is KVCache and member.keys is not None:
        # Same effect as below, without four array operations per foreign layer and step.
        member.offset += tokens
    elif is_compressed(member):
        member.update_window(mx.zeros((rows, tokens, 0)))
        member.window = _unchained(member.window)
    elif hasattr(member, "update_and_fetch"):
        nothing = mx.zeros((rows, 1, tokens, 0))
        member.update_and_fetch(nothing, nothing)
        member.keys, member.values = _unchained(member.keys), _unchained(member.values)
    elif hasattr(member, "advance"):
        member.advance(tokens)


def _unchained(empty: mx.array) -> mx.array:
    # Nothing ever evaluates it: left alone, it would keep the graphs of all steps before.
    return mx.zeros(empty.shape, empty.dtype)


def counting_arrays(entries: Iterable[Any]) -> list[mx.array]:
    """The positions that caches keep as arrays, as those of batches do.

    They are to be evaluated with every step, those of foreign layers too: each is made from the one before.
    """
    found = [
        getattr(member, name, None)
        for entry in entries
        for member in members(entry)
        for name in ("offset", "left_padding", "lengths")
    ]
    return [value for value in found if isinstance(value, mx.array)]
