"""Writes small model folders with random weights, as Hugging Face lays them out."""

import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import _get_classes

VOCABULARY = 320

_DENSE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

_MOE: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_DENSE, "model_type": "llama"},
    "llama_tied": {**_DENSE, "model_type": "llama", "tie_word_embeddings": True},
    "llama_sliding": {
        **_DENSE,
        "model_type": "llama",
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 8,
    },
    "qwen2": {**_DENSE, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**_DENSE, "model_type": "qwen3"},
    "qwen3_moe": {**_DENSE, **_MOE, "model_type": "qwen3_moe"},
    "minimax": {
        **_DENSE,
        "model_type": "minimax",
        "intermediate_size": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 0,
        "rotary_dim": 8,
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
    },
    "rwkv7": {
        "model_type": "rwkv7",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "norm_eps": 1e-5,
        "head_dim": 32,
        "num_hidden_layers": 4,
        "a_low_rank_dim": 16,
        "v_low_rank_dim": 16,
        "gate_low_rank_dim": 16,
        "decay_low_rank_dim": 16,
        "tie_word_embeddings": False,
    },
}


EXPERTS = {"qwen3_moe", "minimax"}
"""Names of the configs with experts."""


def write_tiny_model(
    folder: Path,
    name: str,
    *,
    seed: int = 0,
    dtype: mx.Dtype | None = None,
    shards: int = 2,
    quantize_bits: int | None = None,
    **overrides: Any,
) -> Path:
    """Writes a loadable folder for `CONFIGS[name]`, without a tokenizer.

    Args:
        folder: made where it is not there.
        name: of the config.
        seed: of the random weights.
        dtype: of the weights; None takes bfloat16, or float32 for experts, whose CPU kernel knows no other.
        shards: weight files; more than one come with an index.
        quantize_bits: bits of quantised weights.
        overrides: changes to the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or (mx.float32 if name in EXPERTS else mx.bfloat16)
    config = {**CONFIGS[name], "torch_dtype": str(dtype).rpartition(".")[2], **overrides}
    model_class, arguments_class = _get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    keys = iter(mx.random.split(mx.random.key(seed), len(tree_flatten(model.parameters()))))

    def weight(path: str, array: mx.array) -> mx.array:
        key = next(keys)
        if not mx.issubdtype(array.dtype, mx.floating):
            return array
        noise = mx.random.normal(array.shape, key=key)
        if "norm" in path:
            return (1 + 0.1 * noise).astype(dtype)
        # Wide enough for logits that differ clearly: close ones would make equal tokens a matter of luck.
        return (noise * (0.3 if array.ndim > 1 else 0.1)).astype(dtype)

    model.update(tree_map_with_path(weight, model.parameters()))
    if quantize_bits is not None:
        config["quantization"] = {"group_size": 32, "bits": quantize_bits}
        quantize(
            model,
            group_size=32,
            bits=quantize_bits,
            class_predicate=lambda _, module: (
                hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0
            ),
        )
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_weights(folder, dict(tree_flatten(model.parameters())), shards)
    return folder


def write_weights(folder: Path, weights: dict[str, mx.array], shards: int) -> None:
    """Writes weights over so many files, with an index where there are more than one."""
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
        return
    names = list(weights)
    size = -(-len(names) // shards)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = {name: weights[name] for name in names[number * size : (number + 1) * size]}
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mx.save_safetensors(str(folder / file), part, {"format": "mlx"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(array.nbytes for array in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def corrupt_layer(folder: Path, layer: int) -> None:
    """Changes the attention output weights of one layer, so that its results differ."""
    for shard in sorted(folder.glob("model*.safetensors")):
        weights = cast("dict[str, mx.array]", mx.load(str(shard)))
        changed = False
        for name, array in weights.items():
            if f"layers.{layer}.self_attn.o_proj.weight" in name:
                weights[name] = mx.flip(array)
                changed = True
            mx.eval(weights[name])
        if changed:
            mx.save_safetensors(str(shard), weights, {"format": "mlx"})
