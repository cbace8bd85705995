"""Counts the bytes of a lazily built model: its layers, and what lies outside them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.distributed import AllToShardedLinear, QuantizedAllToShardedLinear
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear
from mlx.utils import tree_flatten

from macmesh_daemon.engine.anatomy import Anatomy, modules_by_path, own_parameters


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Parameters of one layer."""

    size_bytes: int
    active_bytes: int
    active_parameters: int
    array_count: int


@dataclass(frozen=True, slots=True)
class OuterWeights:
    """Parameters outside the layers, named as in a profile."""

    embedding_bytes: int
    head_copy_bytes: int | None
    norm_bytes: int
    head_bytes: int
    shared_bytes: int
    array_count: int

    @property
    def tied(self) -> bool:
        """The last stage needs the first one's embedding."""
        return self.head_copy_bytes is not None


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


def outer_weights(model: Module, anatomy: Anatomy) -> OuterWeights:
    """Sorts the parameters outside the layers by the stages that load them.

    Args:
        model: The model.
        anatomy: What `examine` found: which modules the first and the last stage need.
    """
    modules = modules_by_path(model)

    def of(paths: Iterable[str]) -> dict[int, mx.array]:
        arrays = [array for path in paths for array in own_parameters(modules[path]).values()]
        return {id(array): array for array in arrays}

    every, head, tail = of(anatomy.shared_modules), of(anatomy.head_modules), of(anatomy.tail_modules)
    both = {key: array for key, array in head.items() if key in tail and key not in every}
    last = {key: array for key, array in tail.items() if key not in head}
    heads = (path for path in anatomy.tail_modules if _outputs(modules[path]) == anatomy.vocab_size)
    projection = of(heads).keys() & last.keys()
    tied = bool(both) and not projection
    if not tied:
        # Needed at both ends, yet not as the head: charged to every stage, which is never too little.
        every |= both
    first = {key: array for key, array in head.items() if key not in every}
    return OuterWeights(
        embedding_bytes=_bytes(first.values()),
        head_copy_bytes=_bytes(both.values()) if tied else None,
        norm_bytes=_bytes(array for key, array in last.items() if key not in projection),
        head_bytes=_bytes(last[key] for key in projection),
        shared_bytes=_bytes(every.values()),
        array_count=len(head | tail),
    )


def _outputs(module: Any) -> int:
    """Width of what a linear layer puts out, over all nodes that share it; 0 for other modules."""
    if isinstance(module, AllToShardedLinear | QuantizedAllToShardedLinear):
        return int(module.weight.shape[0] * module.group.size())
    return int(module.weight.shape[0]) if isinstance(module, Linear | QuantizedLinear) else 0


def _bytes(arrays: Iterable[mx.array]) -> int:
    return sum(array.nbytes for array in arrays)


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
