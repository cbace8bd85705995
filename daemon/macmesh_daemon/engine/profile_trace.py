"""Watches a model take a lazy step: what each layer gets, multiplies, attends to and caches.

mlx is lazy: running the model builds a graph whose arrays know their shapes and dtypes. While a `Trace` is
active, the layers report what they are called with, the projections what they put out, and attention the
shapes that it is given.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

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


def trace_step(model: Module, caches: Sequence[Any], tokens: int) -> Trace:
    """Runs one lazy step and returns what was seen. The caches advance."""
    trace = Trace(tokens=tokens, layers=[LayerTrace() for _ in layers_of(model)])
    with ExitStack() as stack:
        for layer, seen in zip(layers_of(model), trace.layers, strict=True):
            stack.enter_context(_watched(layer, trace, seen))
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
            return original.__call__(self, *args, **kwargs)
        finally:
            trace.current = outer

    layer.__class__ = type(original.__name__, (original,), {"__call__": call})
    try:
        yield
    finally:
        layer.__class__ = original


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
            stack.enter_context(_replaced(kind, "__call__", reporting(kind.__call__)))
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

    with _replaced(mx.fast, "scaled_dot_product_attention", attention):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
