"""From traced caches to cost data, checked against further traces."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models import cache as mlx_caches

from macmesh_daemon.engine.cache_members import arrays_held, is_compressed, members
from macmesh_daemon.engine.profile_trace import layers_of, step
from macmesh_daemon.engine.profile_views import traced_views
from macmesh_daemon.models.errors import LocalArchitectureError
from macmesh_placement import CachePiece
from macmesh_placement.cachecost import CacheKind

#: Steps whose cache sizes are compared with the prediction; recurrent layers unroll, so theirs stay short.
CHECK_STEPS = (300, 40, 1, 1, 300, 1)
RECURRENT_CHECK_STEPS = (40, 7, 1, 1)

#: A state that fills up is full after so many tokens; one that is not fails the check of its size.
_MOST_RECENT_TOKENS = 24

#: Elements of the smallest group that mlx quantises.
_SMALLEST_GROUP = 32

_KINDS: dict[type, CacheKind] = {
    mlx_caches.KVCache: "growing",
    mlx_caches.RotatingKVCache: "ring",
    mlx_caches.ChunkedKVCache: "chunked",
    mlx_caches.ArraysCache: "constant",
}


def cache_pieces(model: Module, caches: Sequence[Any]) -> list[CachePiece | None]:
    """The cost data of every member of a model's caches; None for one that stays empty.

    Args:
        model: The model, lazily built.
        caches: Its caches after at least one lazy step.

    Raises:
        LocalArchitectureError: A class is not one whose size is known to follow a rule.
    """
    flat = [member for cache in caches for member in members(cache)]
    if any(map(is_compressed, flat)):
        return _compressed_pieces(model, flat)
    pieces = [_piece_of(cache) for cache in flat]
    if not any(piece is not None and piece.kind in {"constant", "ring"} for piece in pieces):
        return pieces  # all keys and values are written into buffers of their own
    windows = _recent_windows(model) if "constant" in {piece.kind for piece in pieces if piece} else {}
    return [
        piece
        and replace(
            windows.get(index, piece),
            view_bytes_per_token=views.per_token_bytes,
            small_view_bytes_per_token=views.small_per_token_bytes,
            small_view_limit_bytes=views.small_limit_bytes,
            decode_view_bytes=views.decode_bytes,
        )
        for index, (piece, views) in enumerate(zip(pieces, traced_views(model), strict=True))
    ]


def _recent_windows(model: Module) -> dict[int, CachePiece]:
    """States that fill up with the first tokens, by index: a model over n-grams keeps its last inputs."""
    sizes: list[list[int]] = []
    for tokens in (1, _MOST_RECENT_TOKENS):
        caches = mlx_caches.make_prompt_cache(model)
        step(model, caches, tokens)
        flat = [member for cache in caches for member in members(cache)]
        sizes.append([int(member.nbytes) if type(member) is mlx_caches.ArraysCache else 0 for member in flat])
    return {
        index: CachePiece(
            kind="recent",
            source="ArraysCache",
            bytes_per_token=one,
            window_tokens=filled // one,
            array_count=1,
        )
        for index, (one, filled) in enumerate(zip(*sizes, strict=True))
        if one and filled != one
    }


def _piece_of(cache: Any) -> CachePiece | None:
    source = type(cache).__name__
    if cache.empty():
        return None
    kind = _KINDS.get(type(cache))
    if kind is None:
        raise LocalArchitectureError(f"no rule is known for the size of a cache of the class {source}")
    if kind == "constant":
        return CachePiece(
            kind=kind,
            source=source,
            constant_bytes=int(cache.nbytes),
            array_count=len(arrays_held(cache)),
        )
    window = {"ring": "max_size", "chunked": "chunk_size"}.get(kind)
    keys, values = cache.keys, cache.values
    piece = CachePiece(
        kind=kind,
        source=source,
        bytes_per_token=cache.nbytes // keys.shape[2],
        step_tokens=cache.step,
        window_tokens=None if window is None else getattr(cache, window),
    )
    if kind != "growing":
        return piece
    return replace(
        piece,
        heads=keys.shape[1],
        key_dim=keys.shape[3],
        value_dim=values.shape[3],
        item_bytes=keys.itemsize,
    )


def _compressed_pieces(model: Module, flat: Sequence[Any]) -> list[CachePiece | None]:
    """deepseek_v41: rows of the window, of closed groups and of the open one, each with its own width."""
    compressors = [getattr(layer.self_attn, "compressor", None) for layer in layers_of(model)]
    groups = [1 if compressor is None else int(compressor.ratio) for compressor in compressors]
    caches = mlx_caches.make_prompt_cache(model)
    step(model, caches, max(groups) + 1)  # every compressor closes a group
    if len(caches) != len(flat) or len(caches) != len(groups):
        raise LocalArchitectureError(
            f"{len(groups)} layers have {len(flat)} caches of the class {type(flat[0]).__name__}, not one each"
        )
    pieces: list[CachePiece | None] = []
    for cache, group in zip(caches, groups, strict=True):
        window, pending = _row_bytes(cache.window), _row_bytes(cache.pending_kv, cache.pending_gate)
        pieces.append(
            CachePiece(
                kind="compressed",
                source=type(cache).__name__,
                bytes_per_token=window,
                window_tokens=cache.window_size,
                group_tokens=group,
                group_bytes=_row_bytes(cache.compress_kv, cache.index_k),
                pending_bytes_per_token=pending,
                # Window and open group are slices of the old rows and the step's together.
                view_bytes_per_token=window + pending,
                decode_view_bytes=window,
                array_count=len(arrays_held(cache)),
            )
        )
    return pieces


def _row_bytes(*arrays: mx.array | None) -> int:
    return sum(array.shape[2] * array.itemsize for array in arrays if array is not None)


def check(model: Module, pieces: Sequence[CachePiece | None], steps: Sequence[int]) -> None:
    """Compares predicted and traced sizes of every cache after each step.

    Args:
        model: The model, lazily built.
        pieces: What `cache_pieces` found, in the order of all members of ``make_prompt_cache``.
        steps: Tokens of each step.

    Raises:
        LocalArchitectureError: A cache does not follow its piece.
    """
    caches = mlx_caches.make_prompt_cache(model)
    flat = [member for cache in caches for member in members(cache)]
    for count in range(1, len(steps) + 1):
        step(model, caches, steps[count - 1])
        for index, (cache, piece) in enumerate(zip(flat, pieces, strict=True)):
            actual = 0 if cache.empty() else int(cache.nbytes)
            predicted = 0 if piece is None else piece.bytes_after(steps[:count])
            if actual != predicted:
                raise LocalArchitectureError(
                    f"cache {index} ({type(cache).__name__}) has {actual} bytes after steps {steps[:count]}, "
                    f"not the {predicted} that its kind predicts"
                )


def kv_bits_problem(model: Module, pieces: Sequence[CachePiece | None]) -> str:
    """Why the model's code cannot run on quantised caches; empty where it can, or where rows are too odd.

    Growing caches are replaced by mlx-lm's quantised ones, of the smallest groups, for two lazy steps.
    """
    growing = [piece for piece in pieces if piece is not None and piece.kind == "growing"]
    if any(width % _SMALLEST_GROUP for piece in growing for width in (piece.key_dim, piece.value_dim)):
        return ""  # no group size divides the rows: the plan is refused for that
    caches = mlx_caches.make_prompt_cache(model)
    try:
        for index, cache in enumerate(caches):
            caches[index] = _quantised(cache)
        for tokens in (3, 1):
            step(model, caches, tokens)
    except Exception as problem:  # noqa: BLE001  any failure of foreign code is the answer
        return f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
    return ""


def _quantised(cache: Any) -> Any:
    if type(cache) is mlx_caches.KVCache:
        return mlx_caches.QuantizedKVCache(group_size=_SMALLEST_GROUP, bits=8)
    if type(cache) is mlx_caches.CacheList:
        cache.caches = tuple(map(_quantised, cache.caches))
    return cache
