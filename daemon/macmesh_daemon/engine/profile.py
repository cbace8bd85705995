"""Profiles a model folder: mlx-lm builds the model lazily, and costs are read off shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import make_prompt_cache

from macmesh_daemon.engine.anatomy import examine
from macmesh_daemon.engine.cache_members import members
from macmesh_daemon.engine.payload import bytes_per_token
from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.engine.profile_caches import (
    CHECK_STEPS,
    RECURRENT_CHECK_STEPS,
    cache_pieces,
    check,
    kv_bits_problem,
)
from macmesh_daemon.engine.profile_scratch import scratch_of_layers
from macmesh_daemon.engine.profile_shards import tensor_shards
from macmesh_daemon.engine.profile_trace import LayerTrace, Trace, layers_of, trace_step
from macmesh_daemon.engine.profile_weights import layer_weights, outer_weights
from macmesh_daemon.engine.stand_ins import UNPROFILED, kernels_replaced
from macmesh_daemon.engine.tensor_sources import noted_loads, tensor_map
from macmesh_daemon.models.errors import LocalArchitectureError, LocalModelFolderError
from macmesh_daemon.models.folder import ModelFolder
from macmesh_daemon.weights.tensor_map import TensorMap
from macmesh_placement import AttentionFacts, CachePiece, LayerProfile, ModelProfile, Scratch, ScratchTerm

#: Tokens of the traced step: more than one, so that the paths of prefill are taken.
_PROBE_TOKENS = 3

#: Head sizes for which Metal fuses the attention of a prefill step (keys and values of one size).
_FUSED_HEAD_DIMS = {64, 72, 80, 96, 128}


@kernels_replaced()
def profile_folder(folder: ModelFolder, lengths: Sequence[int] = ()) -> ModelProfile:
    """Profiles a folder.

    Args:
        folder: The folder; without weights, sizes come from its config.
        lengths: Steps with which the cache costs are checked; empty takes the default.

    Raises:
        LocalArchitectureError: mlx-lm lacks the architecture, or its caches cannot be costed.
        LocalModelFolderError: Config and weights do not make a model.
    """
    # Shapes need no GPU, and a profile must not depend on whether there is one.
    mx.set_default_device(mx.cpu)
    model = build(folder)
    profile = profile_model(model, folder, lengths)
    scratches = [layer.scratch for layer in profile.layers]
    shards = tensor_shards(model, lambda part: profile_model(part, folder, (_PROBE_TOKENS,), scratches))
    return replace(profile, tensor_shards=shards)


@kernels_replaced()
def map_tensors(folder: ModelFolder) -> TensorMap:
    """Which tensors of a folder's files each part of its model is computed from.

    Raises:
        LocalArchitectureError: mlx-lm lacks the architecture.
        LocalModelFolderError: Config and weights do not make a model, or there are no weights.
    """
    if not folder.weight_files:
        raise LocalModelFolderError(f"{folder.path} holds no weights whose tensors could be told apart")
    mx.set_default_device(mx.cpu)
    with noted_loads() as loaded:
        model = build(folder)
    return tensor_map(model, examine(model), loaded)


@kernels_replaced()
def profile_model(
    model: Module,
    folder: ModelFolder,
    lengths: Sequence[int] = (),
    scratches: Sequence[Scratch] = (),
) -> ModelProfile:
    """Profiles a model that is already built, lazily or not; raises as `profile_folder`.

    Args:
        model: The model.
        folder: Where it comes from.
        lengths: As for `profile_folder`.
        scratches: What is known to bound the prefill scratch of each layer, as the whole model's does that of
            its shards; empty: it is traced.
    """
    scratch_source = "graph"
    layers = layers_of(model)
    if not layers:
        raise LocalArchitectureError(f"{folder.model_type} names no layers, so that nothing can be placed")
    caches, trace = _traced(model, folder)
    flat = [member for cache in caches for member in members(cache)]
    pieces = cache_pieces(model, caches)
    recurrent = any(piece is not None and piece.kind == "constant" for piece in pieces)
    check(model, pieces, tuple(lengths) or (RECURRENT_CHECK_STEPS if recurrent else CHECK_STEPS))

    owned: set[int] = set()
    profiles = []
    for layer, seen in zip(layers, trace.layers, strict=True):
        own = [id(member) for cache in seen.caches for member in members(cache)]
        fresh = [key for key in own if key not in owned]
        owned.update(fresh)
        found = tuple(
            piece for cache, piece in zip(flat, pieces, strict=True) if piece and id(cache) in fresh
        )
        profiles.append(_layer_profile(layer, seen, trace, found, folder))
    anatomy = examine(model)
    outer = outer_weights(model, anatomy)
    first = trace.layers[0]
    if not scratches:
        scratches, scratch_source = _scratches(model, profiles, trace)
    with_scratch = tuple(
        replace(layer, scratch=scratch) for layer, scratch in zip(profiles, scratches, strict=True)
    )
    return ModelProfile(
        model_id=folder.model_id,
        model_type=folder.model_type,
        digest=folder.digest,
        layers=with_scratch,
        embedding_bytes=outer.embedding_bytes,
        norm_bytes=outer.norm_bytes,
        head_bytes=outer.head_bytes,
        tied=outer.tied,
        head_copy_bytes=outer.head_copy_bytes,
        shared_bytes=outer.shared_bytes,
        outer_parameter_count=outer.array_count,
        hidden_size=first.input_bytes // first.input_item_bytes // _PROBE_TOKENS,
        vocab_size=anatomy.vocab_size,
        activation_bytes=first.input_item_bytes,
        position_limit=folder.position_limit,
        cut_points=anatomy.cut_points,
        cut_reason=anatomy.cut_reason,
        handover_bytes=bytes_per_token(model, anatomy),
        head_caches=tuple(
            piece for cache, piece in zip(flat, pieces, strict=True) if piece and id(cache) not in owned
        ),
        weights_source="headers" if folder.weight_files else "config",
        scratch_source=scratch_source,
        mlx_lm_version=version("mlx-lm"),
        kv_bits_problem=kv_bits_problem(model, pieces),
    )


def _traced(model: Module, folder: ModelFolder) -> tuple[list[Any], Trace]:
    """The model's caches after one step, and what the step showed."""
    try:
        caches = make_prompt_cache(model)
        trace = trace_step(model, caches, _PROBE_TOKENS)
        if not trace.layers[0].calls:
            caches = make_prompt_cache(model)
            trace = trace_step(model, caches, _PROBE_TOKENS, by_parts=True)
    except Exception as problem:
        known = UNPROFILED.get(folder.model_type)
        raise LocalArchitectureError(
            f"mlx-lm cannot run a step of {folder.model_type}: "
            f"{known or f'{type(problem).__name__}: {problem}'}"
        ) from problem
    if not trace.layers[0].input_item_bytes:
        raise LocalArchitectureError(
            f"no part of the first layer of {folder.model_type} is ever called, so that nothing can be placed"
        )
    return caches, trace


def _layer_profile(
    layer: Module, seen: LayerTrace, trace: Trace, pieces: tuple[CachePiece, ...], folder: ModelFolder
) -> LayerProfile:
    weights = layer_weights(layer, trace.experts)
    return LayerProfile(
        weight_bytes=weights.size_bytes,
        active_weight_bytes=weights.active_bytes,
        active_parameters=weights.active_parameters,
        parameter_count=weights.array_count,
        caches=pieces,
        attention=_attention(seen, pieces, folder),
    )


def _attention(
    seen: LayerTrace, pieces: tuple[CachePiece, ...], folder: ModelFolder
) -> AttentionFacts | None:
    windows = [piece.window_tokens for piece in pieces if piece.kind != "constant"]
    window = (
        max((size for size in windows if size is not None), default=None) if None not in windows else None
    )
    if not windows and not seen.attention:
        return None
    # What is no kernel everywhere stands in the graph of the step, scores and all.
    fused = bool(seen.attention) and all(_fused(call.query_dim, call.value_dim) for call in seen.attention)
    return AttentionFacts(
        query_heads=max((call.query_heads for call in seen.attention), default=_heads(folder)),
        fused=fused,
        score_bytes=max((call.score_bytes for call in seen.attention), default=4),
        traced=not fused,
        window_tokens=window,
    )


def _heads(folder: ModelFolder) -> int:
    text = _text_config(folder)
    return int(text.get("num_attention_heads") or text.get("n_head") or text.get("n_heads") or 1)


def _text_config(folder: ModelFolder) -> Mapping[str, Any]:
    text: Mapping[str, Any] = folder.config.get("text_config") or folder.config
    return text


def _fused(query_dim: int, value_dim: int) -> bool:
    return query_dim == value_dim and query_dim in _FUSED_HEAD_DIMS


def _scratches(model: Module, layers: Sequence[LayerProfile], trace: Trace) -> tuple[Sequence[Scratch], str]:
    """What a prefill step keeps alive in each layer, and where that was read."""
    windows = [layer.attention.window_tokens if layer.attention else None for layer in layers]
    try:
        return scratch_of_layers(model, windows, _fused), "graph"
    except Exception:  # noqa: BLE001  mlx hands over the graphs of nearly all models; the others are estimated
        return [_estimated(seen) for seen in trace.layers], "projections"


def _estimated(seen: LayerTrace) -> Scratch:
    """Two layers' projections at once, the masks, and scores with their softmax where nothing is fused."""
    scores = [
        call.mask_bytes
        + call.score_bytes
        * (call.mask_heads + (0 if _fused(call.query_dim, call.value_dim) else 2 * call.query_heads))
        for call in seen.attention
    ]
    per_token = -(-(seen.output_bytes + seen.input_bytes) // _PROBE_TOKENS)
    return Scratch(live=(ScratchTerm(0, 2 * per_token, 0, max(scores, default=0)),))
