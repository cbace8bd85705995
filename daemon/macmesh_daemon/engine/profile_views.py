"""Finds what a cached state keeps alive: the buffer that it is a slice of.

mlx gives out the graph of a function as records of its operations, with the shapes of what each takes and
makes. A state's buffer is found by walking back from it through the operations that only look at their input
in another way. Nothing is computed.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache

from macmesh_daemon.engine.cache_members import arrays_held, detach, members
from macmesh_daemon.engine.exported_graph import ArrayRecord, ExportedGraph, exported
from macmesh_daemon.engine.profile_trace import step
from macmesh_daemon.engine.stand_ins import replaced, uncompiled
from macmesh_daemon.engine.step_memory import RESHAPES, VIEWS
from macmesh_daemon.models.errors import LocalArchitectureError

#: Operations whose output shares the buffer of their first input, or may.
_VIEWS = VIEWS | RESHAPES | {"Copy", "CustomTransforms"}

#: ``mx.contiguous`` leaves an array as it is that wastes at most so much of its buffer.
CONTIGUOUS_WASTE_BYTES = 16_384

#: Steps that are traced, from empty caches on: two first steps, two later ones, one token. Recurrent layers
#: unroll, so all are short.
HISTORIES = ((5, 6, 7, 1), (6,), (1,))


@dataclass(slots=True)
class Views:
    """What one cache keeps alive beyond what it reports, per token of a prefill step."""

    per_token_bytes: int = 0
    small_per_token_bytes: int = 0
    small_limit_bytes: int = 0
    decode_bytes: int = 0
    """What a step of one token keeps alive."""


@dataclass(frozen=True, slots=True)
class _Graph:
    outputs: list[ArrayRecord]
    makers: dict[str, Any]

    @classmethod
    def of(cls, graph: ExportedGraph) -> "_Graph":
        makers = {made[0]: operation for operation in graph.operations for made in operation["outputs"]}
        return cls(graph.outputs, makers)

    def root(self, array: ArrayRecord) -> tuple[ArrayRecord, bool]:
        """The array whose buffer this one uses, and whether a copy to contiguous memory lies between."""
        small = False
        while (record := self.makers.get(array[0])) is not None:
            if _is_marker(record):
                small = True
            elif record["name"] not in _VIEWS:
                break
            array = record["inputs"][0]
        return array, small


def traced_views(model: Module) -> list[Views]:
    """What each member of ``make_prompt_cache`` keeps alive; the most over the traced steps.

    Raises:
        LocalArchitectureError: mlx cannot give out the graph.
    """
    total = sum(len(members(cache)) for cache in make_prompt_cache(model))
    seen = [_Seen() for _ in range(total)]
    with _without_weights(model), uncompiled():
        for history in HISTORIES:
            caches = make_prompt_cache(model)
            flat = [member for cache in caches for member in members(cache)]
            for index, tokens in enumerate(history):
                graph = _graph(model, caches, flat, tokens)
                outputs = iter(graph.outputs)
                for member, waste in zip(flat, seen, strict=True):
                    own = [next(outputs) for _ in arrays_held(member)]
                    waste.add(graph, own, tokens, first=index == 0)
                    detach(member, _numbered)
    return [waste.views() for waste in seen]


@dataclass(slots=True)
class _Seen:
    """What one cache kept alive in each traced step, apart for first and later steps."""

    plain: dict[bool, dict[int, int]] = field(default_factory=lambda: {True: {}, False: {}})
    small: dict[bool, dict[int, int]] = field(default_factory=lambda: {True: {}, False: {}})
    small_arrays: int = 0

    def add(self, graph: _Graph, own: Sequence[ArrayRecord], tokens: int, *, first: bool) -> None:
        roots: dict[str, int] = {}
        reported: dict[str, int] = {}
        small: set[str] = set()
        for array in own:
            root, is_small = graph.root(array)
            roots[root[0]] = _nbytes(root)
            reported[root[0]] = reported.get(root[0], 0) + _nbytes(array)
            if is_small:
                small.add(root[0])
        waste = {name: max(0, size - reported[name]) for name, size in roots.items()}
        self.plain[first][tokens] = sum(size for name, size in waste.items() if name not in small)
        self.small[first][tokens] = sum(waste[name] for name in small)
        self.small_arrays = max(self.small_arrays, len(small))

    def views(self) -> Views:
        small = _per_token(self.small)
        return Views(
            per_token_bytes=_per_token(self.plain),
            small_per_token_bytes=small,
            small_limit_bytes=self.small_arrays * CONTIGUOUS_WASTE_BYTES if small else 0,
            decode_bytes=max(
                plain[1] + small[1]
                for plain, small in zip(self.plain.values(), self.small.values(), strict=True)
            ),
        )


def _per_token(seen: dict[bool, dict[int, int]]) -> int:
    """The smallest rate that bounds every step, where what is kept alive is linear in the step's tokens."""
    rates = [0]
    for by_tokens in seen.values():
        points = sorted((tokens, size) for tokens, size in by_tokens.items() if tokens > 1)
        rates += [-(-size // tokens) for tokens, size in points]
        (low, low_size), (high, high_size) = points[-2:]
        rates.append(-(-(high_size - low_size) // (high - low)))
    return max(rates)


def _graph(model: Module, caches: Sequence[Any], flat: Sequence[Any], tokens: int) -> _Graph:
    def run(_start: mx.array) -> list[mx.array]:
        step(model, caches, tokens)
        return [array for member in flat for array in arrays_held(member)]

    try:
        with replaced(mx, "contiguous", _marked):
            return _Graph.of(exported(run, mx.zeros(1)))
    except ValueError as problem:
        raise LocalArchitectureError(
            f"what the states of {type(model).__module__.rpartition('.')[2]} keep alive cannot be traced: "
            f"{problem}"
        ) from problem


def _marked(array: mx.array, *_args: Any, **_kwargs: Any) -> mx.array:
    # mlx does not give out this operation; joining nothing to an array marks its place.
    if array.ndim == 0:
        return array
    return mx.concatenate([array, mx.zeros((*array.shape[:-1], 0), array.dtype)], axis=-1)


def _is_marker(record: dict[str, Any]) -> bool:
    # A concatenation of the model's own with nothing copies: to take it for a marker too only adds to what
    # is counted.
    return record["name"] == "Concatenate" and any(0 in shape for _, shape, _ in record["inputs"][1:])


def _nbytes(array: ArrayRecord) -> int:
    return math.prod(array[1]) * array[2].size


_numbers = count()


def _numbered(array: mx.array) -> mx.array:
    """An array of that shape and dtype, of a value that no other has."""
    return mx.broadcast_to(mx.array(next(_numbers)).astype(array.dtype), array.shape)


@contextmanager
def _without_weights(model: Any) -> Iterator[None]:
    """Parameters of one value make a graph of the model alone, without what makes or loads its weights.

    No two have the same value: mlx merges what is computed equally from equal numbers.
    """
    held = model.parameters()
    model.update(tree_map(_numbered, held))
    try:
        yield
    finally:
        model.update(held)
