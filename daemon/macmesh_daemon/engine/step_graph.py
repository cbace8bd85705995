"""Captures the graph of one step: every array that it makes, with shape and dtype, and none computed.

mlx hands the graph of a function to a callback (``mx.export_function``). The parameters and the caches are
inputs of that function, so that the graph holds the step alone. Operations that the GPU runs as one kernel
(norms, rotary embedding, attention) would appear here as the many that the CPU takes for them; stand-ins of
the same shapes keep them one operation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from macmesh_daemon.engine.cache_members import members
from macmesh_daemon.engine.caches import allocate_at_once, round_up_tokens
from macmesh_daemon.engine.exported_graph import ArrayRecord, ExportedGraph, exported
from macmesh_daemon.engine.profile_trace import layers_of, routed
from macmesh_daemon.engine.stand_ins import replaced

MARK = "View"
"""A view as bytes and one back: on a layer's input they say that it begins, on its output that it ends."""


@dataclass(frozen=True, slots=True)
class Value:
    """One array of the graph."""

    name: str
    shape: tuple[int, ...]
    item_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all its elements."""
        count = self.item_bytes
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: ``layer`` is the number of the layer that it belongs to, -1 outside."""

    kind: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    layer: int = -1


@dataclass(frozen=True, slots=True)
class StepGraph:
    """The operations of a step in an order in which they can run.

    Attributes:
        nodes: The operations.
        given: Names of the arrays that are there before the step.
        whole: The marks of the layers do not come in pairs, so that nodes cannot be told apart by layer.
    """

    nodes: tuple[Node, ...]
    given: frozenset[str]
    whole: bool


def capture(model: Module, tokens: int, history: int, fuses: Callable[[int, int], bool]) -> StepGraph:
    """The graph of a prefill step up to the end of the last layer.

    Args:
        model: The model, lazily built.
        tokens: Tokens of the step.
        history: Tokens that the caches have taken before.
        fuses: Whether attention with that head size of queries and of values is one kernel.
    """
    caches = make_prompt_cache(model)
    for cache in caches:
        allocate_at_once(cache, round_up_tokens(history + tokens))
    untyped: Any = model
    untyped(mx.zeros((1, history), dtype=mx.int32), cache=caches)
    slots = [slot for cache in caches for slot in _array_slots(cache)]
    flat: Any = tree_flatten(untyped.parameters())
    names, parameters = [name for name, _ in flat], [value for _, value in flat]
    held = [slot.get() for slot in slots]

    def step(ids: mx.array, *arrays: mx.array) -> list[mx.array]:
        untyped.update(tree_unflatten(list(zip(names, arrays, strict=False))))
        for slot, array in zip(slots, arrays[len(names) :], strict=True):
            slot.put(array)
        out = untyped(ids, cache=caches)
        after = [array for cache in caches for array in (slot.get() for slot in _array_slots(cache))]
        return [out, *after]

    with ExitStack() as stack:
        for layer in layers_of(model):
            stack.enter_context(routed(layer, _marked))
        stack.enter_context(_fused_kernels(fuses))
        try:
            graph = exported(step, mx.zeros((1, tokens), dtype=mx.int32), *parameters, *held)
        finally:
            untyped.update(tree_unflatten(list(zip(names, parameters, strict=True))))
    return _by_layer(graph, len(layers_of(model)))


def _marked(original: Callable[..., Any]) -> Callable[..., Any]:
    """Marks the first array that goes into a layer and the first that comes out."""

    def call(*args: Any, **kwargs: Any) -> Any:
        out = original(*_first_replaced(args, _mark), **kwargs)
        return _first_replaced(out, _mark) if isinstance(out, tuple | list) else _mark(out)

    return call


def _first_replaced(values: Sequence[Any], change: Callable[[mx.array], mx.array]) -> Sequence[Any]:
    items = list(values)
    for index, item in enumerate(items):
        if isinstance(item, mx.array):
            items[index] = change(item)
            break
    return tuple(items) if isinstance(values, tuple) else items


def _mark(array: mx.array) -> mx.array:
    return mx.view(mx.view(array, mx.uint8), array.dtype)


@dataclass(slots=True)
class _Slot:
    """A place in a cache that holds an array."""

    owner: Any
    key: Any

    def get(self) -> mx.array:
        array: mx.array = self.owner[self.key] if isinstance(self.key, int) else getattr(self.owner, self.key)
        return array

    def put(self, array: mx.array) -> None:
        if isinstance(self.key, int):
            self.owner[self.key] = array
        else:
            setattr(self.owner, self.key, array)


def _array_slots(value: Any) -> Iterator[_Slot]:
    for cache in members(value):
        for key, item in list(vars(cache).items()):
            if isinstance(item, mx.array):
                yield _Slot(cache, key)
            elif isinstance(item, list):
                yield from (_Slot(item, index) for index, one in enumerate(item) if isinstance(one, mx.array))


@contextmanager
def _fused_kernels(fuses: Callable[[int, int], bool]) -> Iterator[None]:
    attention = mx.fast.scaled_dot_product_attention

    def norm(x: mx.array, *_args: Any, **_kwargs: Any) -> mx.array:
        return mx.abs(x)

    def attend(q: mx.array, k: mx.array, v: mx.array, **kwargs: Any) -> mx.array:
        if not fuses(q.shape[-1], v.shape[-1]):
            return attention(q, k, v, **kwargs)
        seen = [array for array in (kwargs.get("mask"), kwargs.get("sinks")) if isinstance(array, mx.array)]
        out = mx.abs(q[..., : v.shape[-1]])
        attended: mx.array = mx.depends([out], [k, v, *seen])[0]
        return attended

    def contiguous(array: mx.array, *_args: Any, **_kwargs: Any) -> mx.array:
        return mx.abs(array) if array.dtype != mx.bool_ else mx.logical_not(array)

    with ExitStack() as stack:
        # mlx cannot hand over the state of this operation.
        stack.enter_context(replaced(mx, "contiguous", contiguous))
        for name in ("rms_norm", "layer_norm", "rope"):
            stack.enter_context(replaced(mx.fast, name, norm))
        stack.enter_context(replaced(mx.fast, "scaled_dot_product_attention", attend))
        yield


def _by_layer(graph: ExportedGraph, layer_count: int) -> StepGraph:
    nodes: list[Node] = []
    layer, marks, pending = -1, 0, ""
    for operation in graph.operations:
        node = Node(
            operation["name"],
            tuple(_value(entry) for entry in operation["inputs"]),
            tuple(_value(entry) for entry in operation["outputs"]),
            layer,
        )
        nodes.append(node)
        if node.kind == MARK:
            if node.inputs[0].name == pending:
                marks += 1
                layer = (marks - 1) // 2 if marks % 2 else -1
                pending = ""
            elif node.outputs[0].item_bytes == 1:
                pending = node.outputs[0].name
    return StepGraph(tuple(nodes), frozenset(graph.given), whole=marks != 2 * layer_count)


def _value(entry: ArrayRecord) -> Value:
    name, shape, dtype = entry
    return Value(name, tuple(shape), dtype.size)
