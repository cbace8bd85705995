"""Profiles of the weights alone, for what does not depend on caches."""

from typing import Any

from mlx.utils import tree_flatten

from macmesh_daemon.engine.anatomy import Anatomy
from macmesh_daemon.engine.profile_trace import layers_of
from macmesh_daemon.engine.profile_weights import layer_weights, outer_weights
from macmesh_placement import LayerProfile, ModelProfile


def own_bytes(module: Any) -> int:
    """Bytes of a module's parameters, each array once."""
    flat: Any = tree_flatten(module.parameters())
    return sum(array.nbytes for array in {id(array): array for _, array in flat}.values())


def weights_profile(model: Any, anatomy: Anatomy) -> ModelProfile:
    """A profile of the weights alone."""
    outer = outer_weights(model, anatomy)
    layers = [layer_weights(layer, {}) for layer in layers_of(model)]
    return ModelProfile(
        model_id="m",
        model_type="m",
        digest="",
        layers=tuple(
            LayerProfile(weight_bytes=layer.size_bytes, active_weight_bytes=layer.active_bytes)
            for layer in layers
        ),
        embedding_bytes=outer.embedding_bytes,
        norm_bytes=outer.norm_bytes,
        head_bytes=outer.head_bytes,
        tied=outer.tied,
        head_copy_bytes=outer.head_copy_bytes,
        shared_bytes=outer.shared_bytes,
        hidden_size=1,
        vocab_size=1,
        activation_bytes=2,
        position_limit=None,
        cut_points=(),
    )
