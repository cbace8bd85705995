"""Layers that read keys and values which earlier layers keep.

A stage behind a cut would need a copy of those caches, which grow with the context. So there is no cut behind the
first layer whose keys and values later ones read: they stay together in the last stage.
"""

from typing import Any

from macmesh_daemon.engine.adapters.base import Limit


def cut_limit(architecture: str, model: Any) -> Limit | None:
    """Where such a model may be cut; None for one that does not share keys and values."""
    match architecture:
        case "gemma3n":
            inner = model.model.language_model
            readers, sources = inner.first_kv_shared_layer_idx, inner.layer_idx_to_cache_idx
        case "gemma4" | "gemma4_text":
            inner = getattr(model, "language_model", model).model
            readers = len(inner.layers) - inner.config.num_kv_shared_layers
            sources = inner.previous_kvs
        case "afm7":
            readers = len(model.model.layers)
            sources = [*range(readers), *([readers - 1] * len(model.model.kv_reuse_layers))]
        case _:
            return None
    if readers >= len(sources):
        return None
    first = min(sources[readers:])
    return Limit(
        frozenset(range(1, first + 1)),
        f"layers {readers} to {len(sources) - 1} read keys and values of layer {first} and later ones, "
        f"so that it can be cut before layer 1 to {first} only",
    )
