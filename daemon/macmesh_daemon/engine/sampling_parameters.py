"""How a token is to be chosen. Plain data, no mlx."""

import dataclasses
import math


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


def sampling_refusal(sampling: Sampling) -> str:
    """What is wrong with the parameters, for people; empty where nothing is."""
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        return f"temperature is {sampling.temperature:g}; it must be 0 or more"
    if not 0 <= sampling.top_p <= 1:
        return f"top_p is {sampling.top_p:g}; it must lie between 0 and 1"
    if not 0 <= sampling.min_p <= 1:
        return f"min_p is {sampling.min_p:g}; it must lie between 0 and 1"
    return ""
