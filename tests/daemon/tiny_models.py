"""Configs of very small models, one for each kind of cache, and folders made from them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from macmesh_daemon.engine.profile import profile_folder, profile_model
from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.engine.profile_trace import layers_of
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import ModelProfile, Scratch

_DENSE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 96,
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}

_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_DENSE, "model_type": "llama"},
    "qwen2": {**_DENSE, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**_DENSE, "model_type": "qwen3", "head_dim": 64},
    "qwen3_moe": {**_DENSE, **_EXPERTS, "model_type": "qwen3_moe", "head_dim": 16, "mlp_only_layers": [0]},
    "minimax": {
        **_DENSE,
        "model_type": "minimax",
        "head_dim": 8,
        "rotary_dim": 4,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "shared_intermediate_size": 0,
    },
    "gemma3_text": {
        **_DENSE,
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 24,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 1000.0,
    },
    "deepseek_v3": {
        **_DENSE,
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "attention_bias": False,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.5,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
    },
    "qwen3_next": {
        **_DENSE,
        **_EXPERTS,
        "model_type": "qwen3_next",
        "head_dim": 16,
        "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "partial_rotary_factor": 0.25,
    },
    "mamba2": {
        "model_type": "mamba2",
        "num_heads": 4,
        "head_dim": 16,
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "state_size": 16,
        "num_hidden_layers": 3,
        "layer_norm_epsilon": 1e-5,
        "expand": 2,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": True,
        "time_step_limit": [0.001, 0.1],
        "time_step_rank": 8,
        "max_position_embeddings": None,
    },
}


def write_config(folder: Path, name: str, **changes: Any) -> Path:
    """A folder with the config alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIGS[name], **changes}))
    return folder


_PROFILES: dict[str, str] = {}


def profiled(folder: Path) -> ModelProfile:
    """The folder's profile as it comes back from JSON; one of the same content is made once."""
    opened = read_folder(folder, require_weights=False)
    if opened.digest not in _PROFILES:
        _PROFILES[opened.digest] = profile_folder(opened).to_json_text()
    return replace(ModelProfile.from_json_text(_PROFILES[opened.digest]), model_id=opened.model_id)


def costs_of(folder: Path) -> ModelProfile:
    """The folder's profile without what takes longest to trace: the scratch of prefill and the shards."""
    opened = read_folder(folder, require_weights=False)
    model = build(opened)
    without = profile_model(model, opened, (), [Scratch()] * len(layers_of(model)))
    return ModelProfile.from_json_text(without.to_json_text())
