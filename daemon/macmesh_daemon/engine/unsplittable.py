"""Architectures whose layers share more than the hidden state, so that a cut needs code of its own."""

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


def unsplittable_reason(architecture: str) -> str | None:
    """Why an architecture cannot be cut, or None where it can as far as is known.

    Args:
        architecture: name of the mlx-lm module, such as "qwen3".
    """
    return REASONS.get(architecture)
