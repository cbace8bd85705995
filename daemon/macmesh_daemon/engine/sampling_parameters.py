"""How a token is to be chosen. Plain data, no mlx."""

import dataclasses
import math

PENALTY_CONTEXT_TOKENS = 20
"""As mlx-lm's."""
MOST_PENALTY_CONTEXT_TOKENS = 4096
MOST_LOGIT_BIASES = 1024
_LARGEST_PENALTY = 100.0


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose. The fields are those of the wire's SamplingParameters."""

    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 0.0
    """0 or 1 takes all."""
    top_k: int = 0
    """0 takes all."""
    min_p: float = 0.0
    """0 takes all."""
    seed: int = 0
    repetition_penalty: float = 0.0
    """Divides the logits of tokens that came lately, or multiplies negative ones; 0 or 1 does nothing."""
    repetition_context_tokens: int = 0
    """How many of the last tokens, the prompt's too, the three penalties look at; 0 takes `PENALTY_CONTEXT_TOKENS`."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that came lately."""
    frequency_penalty: float = 0.0
    """Taken off the logits of tokens that came lately, as many times as they came."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their logits."""

    @property
    def history_tokens(self) -> int:
        """How many of the last tokens must be known to choose the next; 0 where none need be."""
        if not (self.repetition_penalty not in {0, 1} or self.presence_penalty or self.frequency_penalty):
            return 0
        return self.repetition_context_tokens or PENALTY_CONTEXT_TOKENS


def sampling_refusal(sampling: Sampling) -> str:
    """What is wrong with the parameters, for people; empty where nothing is."""
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        return f"temperature is {sampling.temperature:g}; it must be 0 or more"
    if not 0 <= sampling.top_p <= 1:
        return f"top_p is {sampling.top_p:g}; it must lie between 0 and 1"
    if not 0 <= sampling.min_p <= 1:
        return f"min_p is {sampling.min_p:g}; it must lie between 0 and 1"
    return _processor_refusal(sampling)


def _processor_refusal(sampling: Sampling) -> str:
    bounds = {
        "repetition_penalty": (0, _LARGEST_PENALTY),
        "repetition_context_tokens": (0, MOST_PENALTY_CONTEXT_TOKENS),
        "presence_penalty": (-_LARGEST_PENALTY, _LARGEST_PENALTY),
        "frequency_penalty": (-_LARGEST_PENALTY, _LARGEST_PENALTY),
    }
    for name, (low, high) in bounds.items():
        value = getattr(sampling, name)
        if not low <= value <= high:  # NaN fails too
            return f"{name} is {value:g}; it must lie between {low:g} and {high:g}"
    if len(sampling.logit_bias) > MOST_LOGIT_BIASES:
        return f"logit_bias has {len(sampling.logit_bias)} tokens; at most {MOST_LOGIT_BIASES} are taken"
    tokens = [token for token, _ in sampling.logit_bias]
    if len(set(tokens)) < len(tokens) or any(token < 0 for token in tokens):
        return "logit_bias must name each token once, by its id"
    if not all(math.isfinite(bias) for _, bias in sampling.logit_bias):
        return "logit_bias must be finite numbers"
    return ""
