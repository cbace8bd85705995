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

_SMALL, _LARGE, _LATER = (1, 2), (2, 3), (2, 4)
"""Rows and tokens of the traced steps: two that make the formula, whose ratios tell rows, tokens and their product
apart; and one behind the second that checks it, as shapes must not follow from the past."""

_MEASURED_TOKENS = 3
"""Of the step of which the bytes are counted."""


@dataclasses.dataclass(frozen=True)
class _Dimension:
    """``times``, multiplied by the rows, the tokens, both or neither."""

    times: int
    by_rows: bool
    by_tokens: bool

    def at(self, rows: int, tokens: int) -> int:
        return self.times * (rows if self.by_rows else 1) * (tokens if self.by_tokens else 1)


ROWS, TOKENS = _Dimension(1, by_rows=True, by_tokens=False), _Dimension(1, by_rows=False, by_tokens=True)

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
    small = traced_steps(model, anatomy, (cut,), _SMALL[0], [_SMALL[1]])[0][cut]
    large, later = (
        step[cut] for step in traced_steps(model, anatomy, (cut,), _LARGE[0], [_LARGE[1], _LATER[1]])
    )
    first = _fitted(small[0], large[0])
    if first is None or ROWS not in first.dimensions or TOKENS not in first.dimensions:
        raise LocalStageError(f"{anatomy.architecture}: what crosses layer {cut} has no axis of tokens")
    fitted: list[_Array | None] = [None]
    if len(small) == len(large) and not adapter_of(model).extras.depends_on_history(cut):
        fitted = [_fitted(*pair) for pair in zip(small, large, strict=True)]
    arrays = tuple(array for array in fitted if array is not None)
    payload = Payload(
        count=len(small),
        handed_on=anatomy.outlines[cut - 1].count,
        row_axis=first.dimensions.index(ROWS),
        token_axis=first.dimensions.index(TOKENS),
        arrays=arrays if len(arrays) == len(fitted) else None,
    )
    expected = payload.facts(*_LATER)
    if expected is not None and [(fact.shape, fact.dtype) for fact in expected] != later:
        return dataclasses.replace(payload, arrays=None)
    return payload


def traced_steps(
    model: Module, anatomy: Anatomy, cuts: Sequence[int], rows: int, steps: Sequence[int]
) -> list[dict[int, Described]]:
    """Shapes and dtypes of what crosses some cuts in each of some lazy steps, from empty caches on.

    Args:
        model: whole and lazy.
        anatomy: of the model.
        cuts: layers before which it is cut.
        rows: requests in each step.
        steps: tokens of each request in each step.
    """
    extras = adapter_of(model).extras
    caches = make_prompt_cache(model)
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

    def crossed(cut: int) -> list[mx.array]:
        return [*handed_on[cut], *extras.pack(cut, [notes[index] for index in range(cut, len(notes))])]

    found = []
    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(model.layers[:enough]):
            stack.enter_context(swapped(layer, {"__call__": watching(index)}))
        for tokens in steps:
            with contextlib.suppress(_EnoughSeen):
                model(mx.zeros((rows, tokens), mx.int32), cache=caches)
            found.append(
                {cut: [(array.shape, dtype_name(array.dtype)) for array in crossed(cut)] for cut in cuts}
            )
    return found


class _EnoughSeen(Exception):  # noqa: N818  no error: it ends a step that has shown all there is to see
    """The rest of the step is not needed."""


def bytes_per_token(model: Module, anatomy: Anatomy) -> int:
    """Most bytes of one token that cross a cut where the model may be cut; 0 where it may not.

    Every cut is charged as the most expensive one.
    """
    if not anatomy.cut_points:
        return 0
    extras = adapter_of(model).extras
    (found,) = traced_steps(model, anatomy, anatomy.cut_points, 1, [_MEASURED_TOKENS])
    most = 0
    for cut, arrays in found.items():
        traced = sum(_nbytes(shape, dtype) for shape, dtype in arrays)
        most = max(most, extras.bytes_per_token(cut, -(-traced // _MEASURED_TOKENS)))
    return most


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    size: int = getattr(mx, dtype).size
    for dimension in shape:
        size *= dimension
    return size


def _fitted(small: tuple[tuple[int, ...], str], large: tuple[tuple[int, ...], str]) -> _Array | None:
    """The formula of an array, from what it was in two steps; None where it is none of those that are known."""
    (small_shape, small_dtype), (large_shape, large_dtype) = small, large
    if len(small_shape) != len(large_shape) or small_dtype != large_dtype:
        return None
    dimensions = [_dimension(*sizes) for sizes in zip(small_shape, large_shape, strict=True)]
    known = tuple(dimension for dimension in dimensions if dimension is not None)
    return _Array(known, small_dtype) if len(known) == len(dimensions) else None


def _dimension(small: int, large: int) -> _Dimension | None:
    for by_rows, by_tokens in ((False, False), (True, False), (False, True), (True, True)):
        times, rest = divmod(small, _Dimension(1, by_rows, by_tokens).at(*_SMALL))
        dimension = _Dimension(times, by_rows, by_tokens)
        if not rest and dimension.at(*_LARGE) == large:
            return dimension
    return None
