"""Counts the bytes of a lazily built model: its layers, and what lies outside them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_flatten

from macmesh_daemon.engine.profile_trace import layers_of


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Parameters of one layer."""

    size_bytes: int
    active_bytes: int
    active_parameters: int
    array_count: int


@dataclass(frozen=True, slots=True)
class OuterWeights:
    """Parameters outside the layers."""

    embedding_bytes: int
    norm_bytes: int
    head_bytes: int
    shared_bytes: int
    array_count: int
    vocab_size: int


def layer_weights(layer: Module, experts: Mapping[int, int]) -> LayerWeights:
    """Counts one layer.

    Args:
        layer: The layer.
        experts: Experts that one token is sent to, by id of the expert module; the others of a module are not
            read.
    """
    arrays = _own_arrays(layer)
    active_bytes, active_parameters = 0.0, 0.0
    for module in _modules(layer):
        share = experts[id(module)] / module.num_experts if id(module) in experts else 1.0
        share = min(1.0, share)
        own = [value for value in module.values() if isinstance(value, mx.array)]
        active_bytes += share * sum(array.nbytes for array in own)
        active_parameters += share * _parameters(module, own)
    return LayerWeights(
        size_bytes=sum(array.nbytes for array in arrays.values()),
        active_bytes=min(round(active_bytes), sum(array.nbytes for array in arrays.values())),
        active_parameters=round(active_parameters),
        array_count=len(arrays),
    )


def outer_weights(model: Module) -> OuterWeights:
    """Sorts the parameters outside the layers.

    A norm is the final one where it is the only one outside the layers. The head is the linear layer that
    puts out the vocabulary. What is neither stays ``shared``: every stage is charged with it.
    """
    inside: set[int] = set()
    inside_modules: set[int] = set()
    for layer in layers_of(model):
        inside |= set(_own_arrays(layer))
        inside_modules |= {id(module) for module in _modules(layer)}
    outer = {key: array for key, array in _own_arrays(model).items() if key not in inside}
    modules = [module for module in _modules(model) if id(module) not in inside_modules]
    embeddings = [module for module in modules if isinstance(module, Embedding | QuantizedEmbedding)]
    vocab_size = max((module.weight.shape[0] for module in embeddings), default=0)
    heads = [
        module
        for module in modules
        if isinstance(module, Linear | QuantizedLinear) and module.weight.shape[0] == vocab_size
    ]
    norms = [module for module in modules if "Norm" in type(module).__name__ and _own_arrays(module)]
    embedding = _take(outer, embeddings)
    head = _take(outer, heads[:1])
    norm = _take(outer, norms) if len(norms) == 1 else 0
    count = len([array for array in _own_arrays(model) if array not in inside])
    return OuterWeights(
        embedding_bytes=embedding,
        norm_bytes=norm,
        head_bytes=head,
        shared_bytes=sum(array.nbytes for array in outer.values()),
        array_count=count,
        vocab_size=vocab_size,
    )


def _take(outer: dict[int, mx.array], modules: Iterable[Module]) -> int:
    """Removes the modules' arrays from ``outer`` and returns their bytes."""
    keys = {key for module in modules for key in _own_arrays(module)}
    return sum(outer.pop(key).nbytes for key in keys if key in outer)


def _own_arrays(module: Any) -> dict[int, mx.array]:
    """The parameters of a module and its children, each once, by id."""
    flat: Any = tree_flatten(module.parameters())
    return {id(array): array for _, array in flat}


def _modules(module: Any) -> list[Module]:
    return [child for _, child in module.named_modules()]


def _parameters(module: Module, own: list[mx.array]) -> int:
    if hasattr(module, "bits") and "weight" in module:
        return int(module.weight.size * 32 // module.bits)
    return sum(array.size for array in own)
