"""Watches a model take a lazy step: what each layer gets, multiplies, attends to and caches.

mlx is lazy: running the model builds a graph whose arrays know their shapes and dtypes. While a `Trace` is
active, the layers report what they are called with, the projections what they put out, and attention the
shapes that it is given.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.distributed import (
    AllToShardedLinear,
    QuantizedAllToShardedLinear,
    QuantizedShardedToAllLinear,
    ShardedToAllLinear,
)
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear
from mlx_lm.models import cache as mlx_caches
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from macmesh_daemon.engine.stand_ins import replaced

_EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
#: Linear layers of which each of several nodes holds a part.
_SHARDED = (
    AllToShardedLinear,
    ShardedToAllLinear,
    QuantizedAllToShardedLinear,
    QuantizedShardedToAllLinear,
)
_PROJECTIONS = (Linear, QuantizedLinear, MultiLinear, QuantizedMultiLinear, *_SHARDED, *_EXPERTS)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What fused attention was asked for: shapes, size of a score, heads of a materialised mask."""

    query_heads: int
    query_dim: int
    value_dim: int
    score_bytes: int
    mask_heads: int
    mask_bytes: int


@dataclass(slots=True)
class LayerTrace:
    """What one layer was seen to do in one step."""

    calls: int = 0
    input_bytes: int = 0
    input_item_bytes: int = 0
    output_bytes: int = 0
    attention: list[AttentionCall] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Trace:
    """What one lazy step of ``tokens`` tokens showed.

    Attributes:
        tokens: Tokens of the step.
        layers: One entry per layer.
        experts: Experts that one token is sent to, by id of the expert module.
    """

    tokens: int
    layers: list[LayerTrace]
    experts: dict[int, int] = field(default_factory=dict)
    current: LayerTrace | None = None


def trace_step(model: Module, caches: Sequence[Any], tokens: int, *, by_parts: bool = False) -> Trace:
    """Runs one lazy step and returns what was seen. The caches advance.

    Args:
        model: The model, lazily built.
        caches: Fresh caches.
        tokens: Tokens of the step.
        by_parts: The model calls parts of its layers, never a layer itself: what happens from the call of a
            part on belongs to that part's layer.
    """
    trace = Trace(tokens=tokens, layers=[LayerTrace() for _ in layers_of(model)])
    with ExitStack() as stack:
        for layer, seen in zip(layers_of(model), trace.layers, strict=True):
            stack.enter_context((_watched_parts if by_parts else _watched)(layer, trace, seen))
        if by_parts:
            stack.enter_context(_watched_outside(model, trace))
            stack.enter_context(_watched_updates(trace))
        stack.enter_context(_watched_projections(trace))
        stack.enter_context(_watched_attention(trace))
        step(model, caches, tokens)
    return trace


def step(model: Module, caches: Sequence[Any], tokens: int) -> None:
    """Runs one lazy step of ``tokens`` tokens; the caches advance."""
    model(mx.zeros((1, tokens), dtype=mx.int32), cache=caches)


def layers_of(model: Module) -> list[Module]:
    """The decoder layers, first to last; empty where the model names none."""
    layers = getattr(model, "layers", None)
    if layers is None:
        layers = getattr(getattr(model, "model", None), "layers", None)
    return list(layers or [])


@contextmanager
def _watched(layer: Module, trace: Trace, seen: LayerTrace) -> Iterator[None]:
    """Swaps the layer's class for one that reports its calls; attributes go on answering."""
    original = type(layer)

    def call(self: Module, *args: Any, **kwargs: Any) -> Any:
        seen.calls += 1
        values = list(_leaves([*args, *kwargs.values()]))
        first = next((value for value in values if isinstance(value, mx.array)), None)
        if first is not None:
            seen.input_bytes, seen.input_item_bytes = first.nbytes, first.itemsize
        seen.caches += [
            value for value in values if hasattr(value, "is_trimmable") and not _among(value, seen.caches)
        ]
        outer, trace.current = trace.current, seen
        try:
            result = original.__call__(self, *args, **kwargs)
        finally:
            trace.current = outer
        return result

    layer.__class__ = type(original.__name__, (original,), {"__call__": call})
    try:
        yield
    finally:
        layer.__class__ = original


@contextmanager
def _watched_parts(layer: Any, trace: Trace, seen: LayerTrace) -> Iterator[None]:
    def entered(value: Any) -> None:
        if not seen.input_item_bytes and isinstance(value, mx.array):
            seen.input_bytes, seen.input_item_bytes = value.nbytes, value.itemsize
        trace.current = seen

    with ExitStack() as stack:
        for _, part in layer.named_modules():
            if part is not layer:
                stack.enter_context(_told_of_calls(part, entered))
        yield


@contextmanager
def _watched_outside(model: Any, trace: Trace) -> Iterator[None]:
    """What a module outside the layers does belongs to no layer."""
    layers: list[Any] = layers_of(model)
    inside = {id(part) for layer in layers for _, part in layer.named_modules()}

    def outside(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            held, trace.current = trace.current, None
            try:
                return original(*args, **kwargs)
            finally:
                trace.current = held

        return call

    with ExitStack() as stack:
        for _, module in model.named_modules():
            if id(module) not in inside and not module.children():
                stack.enter_context(routed(module, outside))
        yield


@contextmanager
def _watched_updates(trace: Trace) -> Iterator[None]:
    """A cache belongs to the layer whose part was called last before its update."""

    def told(original: Callable[..., Any]) -> Callable[..., Any]:
        def update(self: Any, *args: Any) -> Any:
            if trace.current is not None and not _among(self, trace.current.caches):
                trace.current.caches.append(self)
            return original(self, *args)

        return update

    with ExitStack() as stack:
        for kind in (mlx_caches.KVCache, mlx_caches.RotatingKVCache, mlx_caches.ChunkedKVCache):
            stack.enter_context(replaced(kind, "update_and_fetch", told(kind.update_and_fetch)))
        yield


def _told_of_calls(module: Module, told: Callable[[Any], None]) -> AbstractContextManager[None]:
    def telling(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            told(args[0] if args else None)
            return original(*args, **kwargs)

        return call

    return routed(module, telling)


@contextmanager
def routed(module: Any, route: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Swaps a module's class for one whose calls take another route."""
    original = type(module)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return route(lambda *a, **k: original.__call__(self, *a, **k))(*args, **kwargs)

    module.__class__ = type(original.__name__, (original,), {"__call__": call})
    try:
        yield
    finally:
        module.__class__ = original


def _among(value: object, values: list[Any]) -> bool:
    return any(value is other for other in values)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


@contextmanager
def _watched_projections(trace: Trace) -> Iterator[None]:
    def reporting(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def call(self: Module, *args: Any, **kwargs: Any) -> mx.array:
            output = original(self, *args, **kwargs)
            if trace.current is not None:
                trace.current.output_bytes += output.nbytes
            if isinstance(self, _EXPERTS):
                indices = args[1] if len(args) > 1 else kwargs["indices"]
                trace.experts[id(self)] = max(1, indices.size // trace.tokens)
            return output

        return call

    with ExitStack() as stack:
        for kind in _PROJECTIONS:
            stack.enter_context(replaced(kind, "__call__", reporting(kind.__call__)))
        yield


@contextmanager
def _watched_attention(trace: Trace) -> Iterator[None]:
    original = mx.fast.scaled_dot_product_attention

    def attention(q: mx.array, k: mx.array, v: mx.array, **kwargs: Any) -> mx.array:
        mask = kwargs.get("mask")
        heads = mask.shape[-3] if isinstance(mask, mx.array) and mask.ndim > 2 else 1  # noqa: PLR2004  [.., H, L, S]
        shared = mask.itemsize if isinstance(mask, mx.array) and heads == 1 else 0
        if trace.current is not None:
            trace.current.attention.append(
                AttentionCall(
                    q.shape[1], q.shape[-1], v.shape[-1], q.itemsize, heads if heads > 1 else 0, shared
                )
            )
        return original(q, k, v, **kwargs)

    with replaced(mx.fast, "scaled_dot_product_attention", attention):
        yield
