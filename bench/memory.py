"""Compares the ledger with the memory that a stage really takes, and prints one JSON object per model.

A model of random weights in a real shape is profiled, built and run as one stage by the engine: its caches are
preallocated to the context, the prompt goes through in chunks, then tokens are decoded. The prediction is the
sum of the ledger's lines that are arrays; the measured peak is MLX's own.

Usage: python bench/memory.py [--context 32768] [--chunk 1024] [--decode 64] [NAME ...]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from macmesh.v1 import types_pb2
from macmesh_daemon.engine import profile_build
from macmesh_daemon.engine.anatomy import examine
from macmesh_daemon.engine.profile import profile_folder
from macmesh_daemon.engine.stage import StageModel
from macmesh_daemon.models.folder import read_folder
from macmesh_daemon.worker.memory_limits import set_memory_limits
from macmesh_placement import Ledger, ModelProfile, Reserves, StageDemand, stage_ledger

#: Lines of the ledger that are memory of the process, not arrays of a single stage's step.
_OTHER_LINES = {"runtime_reserve", "transport_pool", "allocator_slack"}

_FOUR_BITS = {"group_size": 64, "bits": 4}
_COMMON = {
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 131_072,
}

CONFIGS: dict[str, dict[str, Any]] = {
    # Every token kept: Qwen2.5-7B.
    "dense": {
        **_COMMON,
        "model_type": "qwen2",
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
        "quantization": _FOUR_BITS,
    },
    # Three windows of 4,096 tokens to one full cache: Command R7B.
    "windows": {
        **_COMMON,
        "model_type": "cohere2",
        "hidden_size": 4096,
        "head_dim": 128,
        "num_hidden_layers": 32,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 256_000,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.25,
        "attention_bias": False,
        "layer_norm_bias": False,
        "quantization": _FOUR_BITS,
    },
    # Latent caches and experts: DeepSeek-V2-Lite with the attention of V3.
    "latent": {
        **_COMMON,
        "model_type": "deepseek_v3",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 10_944,
        "moe_intermediate_size": 1408,
        "n_shared_experts": 2,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "vocab_size": 102_400,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "quantization": _FOUR_BITS,
    },
    # Short convolutions, whose states do not grow, to one full cache in three: LFM2-2.6B.
    "states": {
        **_COMMON,
        "model_type": "lfm2",
        "hidden_size": 2048,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 2048,
        "block_ff_dim": 10_752,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "vocab_size": 65_536,
        "layer_types": ["conv", "conv", "full_attention"] * 10,
        "quantization": _FOUR_BITS,
    },
}


def main() -> int:
    """Measures the named models."""
    parser = argparse.ArgumentParser(description="compares the ledger with the memory that a stage takes")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CONFIGS)} (default: all)")
    parser.add_argument("--context", type=int, default=32_768)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--layers", type=int, default=0, help="keep only the first layers (default: all)")
    options = parser.parse_args()
    for name in options.names or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            config = dict(CONFIGS[name])
            if options.layers:
                config["num_hidden_layers"] = options.layers
                if "layer_types" in config:
                    config["layer_types"] = config["layer_types"][: options.layers]
            (Path(folder) / "config.json").write_text(json.dumps(config))
            result = measure(Path(folder), options.context, options.chunk, options.decode)
        json.dump({"format": "macmesh-bench-memory/1", "model": name, **result}, sys.stdout)
        print(flush=True)
        mx.clear_cache()
    return 0


def measure(path: Path, context_tokens: int, chunk_tokens: int, decoded_tokens: int) -> dict[str, Any]:
    """Profiles, builds and runs one model; returns the ledger's lines and what was measured."""
    profile = ModelProfile.from_json_text(
        profile_folder(read_folder(path, require_weights=False)).to_json_text()
    )
    demand = StageDemand(
        context_tokens=context_tokens, slots=1, prefill_chunk_tokens=chunk_tokens, reserves=Reserves()
    )
    gpu = mx.is_available(mx.gpu)
    ledger = stage_ledger(
        profile,
        demand,
        first_layer=0,
        end_layer=profile.layer_count,
        usable_bytes=0,
        fused_attention=gpu,
    )
    lines = {entry.name: entry.size_bytes for entry in ledger.entries}
    stage = _stage(path, gpu=gpu)
    _limit(ledger)
    weights_bytes = mx.get_active_memory()
    caches = stage.make_caches(context_tokens)
    body = context_tokens - decoded_tokens
    mx.reset_peak_memory()
    start = time.perf_counter()
    for offset in range(0, body, chunk_tokens):
        count = min(chunk_tokens, body - offset)
        stage.step([mx.random.randint(0, profile.vocab_size, (1, count))], caches)
        stage.evaluate([], caches)
    seconds = time.perf_counter() - start
    prefill_peak_bytes = mx.get_peak_memory()
    mx.clear_cache()
    mx.reset_peak_memory()
    token = mx.array([[1]])
    for _ in range(decoded_tokens):
        (logits,) = stage.step([token], caches)
        token = mx.argmax(logits[:, -1, :], axis=-1)[None]
        stage.evaluate([token], caches)
    decode_peak_bytes = mx.get_peak_memory()
    predicted_bytes = sum(size for line, size in lines.items() if line not in _OTHER_LINES)
    peak_bytes = max(prefill_peak_bytes, decode_peak_bytes)
    return {
        "device": mx.device_info(mx.gpu).get("device_name", "gpu") if gpu else "cpu",
        "context_tokens": context_tokens,
        "chunk_tokens": chunk_tokens,
        "lines": lines,
        "weights_bytes": weights_bytes,
        "after_bytes": mx.get_active_memory(),
        "prefill_peak_bytes": prefill_peak_bytes,
        "decode_peak_bytes": decode_peak_bytes,
        "predicted_peak_bytes": predicted_bytes,
        "predicted_over_measured": round(predicted_bytes / peak_bytes, 4),
        "prefill_tokens_per_second": round(body / seconds, 1),
    }


def _stage(path: Path, *, gpu: bool) -> StageModel:
    # The profile is made on the CPU; what runs is made where it runs.
    mx.set_default_device(mx.gpu if gpu else mx.cpu)
    model = profile_build.build(read_folder(path, require_weights=False))
    anatomy = examine(model)
    stage = StageModel(model, anatomy, 0, anatomy.layer_count)
    stage.read_weights(lambda _done, _total: None)
    mx.synchronize()
    mx.clear_cache()
    return stage


def _limit(ledger: Ledger) -> None:
    wire = types_pb2.Ledger()
    for entry in ledger.entries:
        wire.entries.add(name=entry.name, size_bytes=entry.size_bytes)
    set_memory_limits(wire)


if __name__ == "__main__":
    sys.exit(main())
