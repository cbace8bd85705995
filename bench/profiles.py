"""Profiles large models from their configs alone and prints one JSON array: seconds and peak memory.

Usage: python bench/profiles.py [--only NAME]

Each config is profiled by a `macmesh-profile` process of its own. The sizes are those of published models.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 120

_LATENT: dict[str, Any] = {
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    "rms_norm_eps": 1e-6,
    "rope_theta": 50000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "kimi_k2": {
        **_LATENT,
        "model_type": "kimi_k2",
        "vocab_size": 163840,
        "n_routed_experts": 384,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "max_position_embeddings": 131072,
    },
    "deepseek_v3": {
        **_LATENT,
        "model_type": "deepseek_v3",
        "vocab_size": 129280,
        "n_routed_experts": 256,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "max_position_embeddings": 163840,
    },
    "minimax_m2_5": {
        "model_type": "minimax",
        "hidden_size": 3072,
        "num_hidden_layers": 62,
        "intermediate_size": 1536,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rotary_dim": 64,
        "rope_theta": 5_000_000.0,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "shared_intermediate_size": 0,
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
        "vocab_size": 200064,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 196608,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "quantization": {"group_size": 64, "bits": 5},
    },
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Profiles one config in a process; the peak is that of the largest process so far."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    command = [str(Path(sys.executable).parent / "macmesh-profile"), str(folder)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS)
    seconds = time.monotonic() - started
    profile = json.loads(done.stdout)
    layers = sum(layer["count"] for layer in profile["layers"])
    weight_bytes = sum(layer["count"] * layer["weight_bytes"] for layer in profile["layers"])
    return {
        "config": name,
        "seconds": round(seconds, 2),
        "peak_rss_mb": round(_peak_bytes() / 1e6),
        "layers": layers,
        "layer_weight_gb": round(weight_bytes / 1e9, 1),
    }


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Measures each config and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(CONFIGS), help="one config instead of all")
    options = parser.parse_args()
    names = [options.only] if options.only else list(CONFIGS)
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(name, Path(folder) / name) for name in names]
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
