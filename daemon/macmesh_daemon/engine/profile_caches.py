"""From traced caches to cost data, checked against further traces."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models import cache as mlx_caches

from macmesh_daemon.engine.profile_trace import step
from macmesh_daemon.models.errors import LocalArchitectureError
from macmesh_placement import CachePiece
from macmesh_placement.cachecost import CacheKind

#: Steps whose cache sizes are compared with the prediction; recurrent layers unroll, so theirs stay short.
CHECK_STEPS = (300, 40, 1, 1, 300, 1)
RECURRENT_CHECK_STEPS = (40, 7, 1, 1)

#: Arrays of a recurrent state with so few rows are the tail of a convolution's input, and hold all of it
#: until copied.
_MOST_CONVOLUTION_ROWS = 16
_ROWS_FIRST_DIMENSIONS = 3


_KINDS: dict[type, CacheKind] = {
    mlx_caches.KVCache: "growing",
    mlx_caches.RotatingKVCache: "ring",
    mlx_caches.ChunkedKVCache: "chunked",
}


def members(cache: Any) -> list[Any]:
    """The cache objects of a layer: a `CacheList` holds several."""
    inner = getattr(cache, "caches", None)
    return [cache] if inner is None else [member for part in inner for member in members(part)]


def piece_of(cache: Any) -> CachePiece | None:
    """The cost data of one cache object that has taken at least one step; None where it stayed empty.

    Raises:
        LocalArchitectureError: The class is not one whose size is known to follow a rule.
    """
    source = type(cache).__name__
    if cache.empty():
        return None
    if type(cache) is mlx_caches.ArraysCache:
        held: list[Any] = cache.cache
        arrays = [array for array in held if array is not None]
        return CachePiece(
            kind="constant",
            source=source,
            constant_bytes=sum(array.nbytes for array in arrays),
            view_bytes_per_token=sum(map(_row_bytes, arrays)),
            array_count=len(arrays),
        )
    kind = _KINDS.get(type(cache))
    if kind is None:
        raise LocalArchitectureError(f"no rule is known for the size of a cache of the class {source}")
    window = {"ring": "max_size", "chunked": "chunk_size"}.get(kind)
    return CachePiece(
        kind=kind,
        source=source,
        bytes_per_token=cache.nbytes // cache.keys.shape[2],
        step_tokens=cache.step,
        window_tokens=None if window is None else getattr(cache, window),
    )


def _row_bytes(array: mx.array) -> int:
    rows = array.shape[1] if array.ndim == _ROWS_FIRST_DIMENSIONS else 0
    return array.nbytes // rows if 0 < rows <= _MOST_CONVOLUTION_ROWS else 0


def check(model: Module, pieces: Sequence[CachePiece | None], steps: Sequence[int]) -> None:
    """Compares predicted and traced sizes of every cache after each step.

    Args:
        model: The model, lazily built.
        pieces: What `piece_of` found, in the order of all members of ``make_prompt_cache``.
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
