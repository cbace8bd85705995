"""What comes in at a cut, known before it is there: traced lazily with steps of a few sizes."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import make_prompt_cache

from macmesh_daemon.engine.adapters import adapter_of
from macmesh_daemon.engine.adapters.base import Nothing
from macmesh_daemon.engine.anatomy import Anatomy, swapped
from macmesh_daemon.engine.errors import LocalStageError
from macmesh_daemon.engine.handover import ArrayFacts, dtype_name

_SIZES = ((1, 1), (1, 2), (2, 1), (2, 2))
"""Rows and tokens of the traced steps that make the formula."""
_CHECK_SIZE, _PAST_TOKENS = (2, 3), 5
"""A step that checks it, and the tokens before it: shapes must not follow from the past."""


@dataclasses.dataclass(frozen=True)
class _Dimension:
    """``constant + rows x by_rows + tokens x by_tokens + rows x tokens x by_both``."""

    constant: int
    by_rows: int
    by_tokens: int
    by_both: int

    def at(self, rows: int, tokens: int) -> int:
        return self.constant + rows * self.by_rows + tokens * self.by_tokens + rows * tokens * self.by_both


ROWS, TOKENS = _Dimension(0, 1, 0, 0), _Dimension(0, 0, 1, 0)

Described = list[tuple[tuple[int, ...], str]]


@dataclasses.dataclass(frozen=True)
class _Array:
    dimensions: tuple[_Dimension, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Payload:
    """The arrays that cross one cut."""

    count: int
    """How many."""
    handed_on: int
    """So many of them, the first, are what the layer before the cut returned; the rest are extras."""
    row_axis: int
    """Axis of the first array that counts requests."""
    token_axis: int
    """Axis of the first array that counts tokens."""
    arrays: tuple[_Array, ...] | None
    """None where the shapes follow from more than the size of the step."""

    def facts(self, rows: int, tokens: int) -> list[ArrayFacts] | None:
        """Shapes and dtypes for a step of that size; None where they follow from more than that."""
        if self.arrays is None:
            return None
        return [
            ArrayFacts(tuple(dimension.at(rows, tokens) for dimension in array.dimensions), array.dtype)
            for array in self.arrays
        ]


def payload_of(model: Module, anatomy: Anatomy, cut: int) -> Payload:
    """What comes in before layer ``cut``. The model must be whole and lazy; nothing is computed.

    Raises:
        LocalStageError: the hidden state does not grow with rows and tokens, so that no step can be told by it.
    """
    traced = {size: crossing(model, anatomy, (cut,), *size)[cut] for size in _SIZES}
    first = _fitted({size: arrays[0] for size, arrays in traced.items()})
    if first is None or ROWS not in first.dimensions or TOKENS not in first.dimensions:
        raise LocalStageError(f"{anatomy.architecture}: what crosses layer {cut} has no axis of tokens")
    counts = {len(arrays) for arrays in traced.values()}
    arrays: list[_Array | None] = [None]
    if len(counts) == 1 and not adapter_of(model).extras.depends_on_history(cut):
        arrays = [
            _fitted({size: found[index] for size, found in traced.items()}) for index in range(counts.pop())
        ]
    fitted = tuple(array for array in arrays if array is not None)
    payload = Payload(
        count=len(traced[1, 1]),
        handed_on=anatomy.outlines[cut - 1].count,
        row_axis=first.dimensions.index(ROWS),
        token_axis=first.dimensions.index(TOKENS),
        arrays=fitted if len(fitted) == len(arrays) else None,
    )
    later = crossing(model, anatomy, (cut,), *_CHECK_SIZE, past_tokens=_PAST_TOKENS)[cut]
    expected = payload.facts(*_CHECK_SIZE)
    if expected is not None and [(fact.shape, fact.dtype) for fact in expected] != later:
        return dataclasses.replace(payload, arrays=None)
    return payload


def crossing(
    model: Module, anatomy: Anatomy, cuts: Sequence[int], rows: int, tokens: int, past_tokens: int = 0
) -> dict[int, Described]:
    """Shapes and dtypes of what crosses some cuts in one lazy step.

    Args:
        model: whole and lazy.
        anatomy: of the model.
        cuts: layers before which it is cut.
        rows: requests in the step.
        tokens: of each.
        past_tokens: in the caches already.
    """
    extras = adapter_of(model).extras
    caches = make_prompt_cache(model)
    if past_tokens:
        model(mx.zeros((rows, past_tokens), mx.int32), cache=caches)
    enough = max(cuts) if type(extras) is Nothing else anatomy.layer_count
    notes: dict[int, Any] = {}
    handed_on: dict[int, list[mx.array]] = {}

    def watching(index: int) -> Callable[..., Any]:
        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            notes[index] = extras.note(index, args, kwargs)
            out = original(*args, **kwargs)
            if index + 1 in cuts:
                handed_on[index + 1] = anatomy.outlines[index].arrays(out)
            if index + 1 == enough:
                raise _EnoughSeen
            return out

        return call

    with contextlib.suppress(_EnoughSeen), contextlib.ExitStack() as stack:
        for index, layer in enumerate(model.layers[:enough]):
            stack.enter_context(swapped(layer, {"__call__": watching(index)}))
        model(mx.zeros((rows, tokens), mx.int32), cache=caches)
    return {
        cut: [
            (array.shape, dtype_name(array.dtype))
            for array in (
                *handed_on[cut],
                *extras.pack(cut, [notes[index] for index in range(cut, len(notes))]),
            )
        ]
        for cut in cuts
    }


class _EnoughSeen(Exception):  # noqa: N818  no error: it ends a step that has shown all there is to see
    """The rest of the step is not needed."""


def bytes_per_token(model: Module, anatomy: Anatomy) -> int:
    """Most bytes of one token that cross a cut where the model may be cut; 0 where it may not.

    Every cut is charged as the most expensive one.
    """
    if not anatomy.cut_points:
        return 0
    extras = adapter_of(model).extras
    found = crossing(model, anatomy, anatomy.cut_points, 1, _CHECK_SIZE[1])
    most = 0
    for cut, arrays in found.items():
        traced = sum(_nbytes(shape, dtype) for shape, dtype in arrays)
        most = max(most, extras.bytes_per_token(cut, -(-traced // _CHECK_SIZE[1])))
    return most


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    size: int = getattr(mx, dtype).size
    for dimension in shape:
        size *= dimension
    return size


def _fitted(found: dict[tuple[int, int], tuple[tuple[int, ...], str]]) -> _Array | None:
    shapes = {size: shape for size, (shape, _) in found.items()}
    dtypes = {dtype for _, dtype in found.values()}
    if len({len(shape) for shape in shapes.values()}) != 1 or len(dtypes) != 1:
        return None
    dimensions = []
    for axis in range(len(shapes[1, 1])):
        one, tokens, rows, both = (shapes[size][axis] for size in _SIZES)
        by_both = both - tokens - rows + one
        by_tokens, by_rows = tokens - one - by_both, rows - one - by_both
        dimension = _Dimension(one - by_rows - by_tokens - by_both, by_rows, by_tokens, by_both)
        dimensions.append(dimension)
    return _Array(tuple(dimensions), dtypes.pop())
