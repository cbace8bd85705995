"""Architectures whose layers share more than the hidden state, so that a cut needs code of its own."""

from typing import Any

REASONS = {
    "gemma3n": "layers read keys and values of earlier ones, and the token embedding",
    "gemma4": "layers read keys and values of earlier ones, and the token embedding",
    "gemma4_text": "layers read keys and values of earlier ones, and the token embedding",
    "afm7": "layers read keys and values of earlier ones",
    "hunyuan": "pairs of layers share keys and values",
    "rwkv7": "every layer reads a value of the first one",
    "kimi_k3": "layers read the outputs of blocks before them",
    "deepseek_v41": "layers hand several streams and a shared state to each other",
    "nanbeige": "the layers run more than once in one step",
    "iquestloopcoder": "the layers run more than once in one step",
    "talkie": "every layer reads the token embedding",
}
"""By the mlx-lm module that implements the architecture. Found by cutting each at every layer."""


_GEMMA_FIELDS = ("num_kv_shared_layers", "hidden_size_per_layer_input")
"""What makes a gemma4 of these two facts: both 0, as in its mixture of experts, nothing else crosses a cut."""


def unsplittable_reason(model: Any) -> str | None:
    """Why a model cannot be cut, or None where it can as far as is known.

    Args:
        model: mlx-lm's model; the name of its module tells the architecture.
    """
    architecture = type(model).__module__.rpartition(".")[2]
    if architecture in {"gemma4", "gemma4_text"}:
        arguments = getattr(getattr(model, "language_model", model), "args", None)
        if all(getattr(arguments, name, None) == 0 for name in _GEMMA_FIELDS):
            return None
    return REASONS.get(architecture)
