"""Chooses the next token from logits.

Filters and arithmetic are mlx-lm's own, in its order, so that the same logits give the same token as there.
Only the random key differs: mlx-lm draws from one global stream of numbers, here the key of a token is a
function of the request's seed and the token's position alone. So a request can be taken up again on any node,
and other requests do not disturb it.
"""

import hashlib

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from macmesh_daemon.engine.sampling_parameters import Sampling

SEED_BITS = 64


def token_key(seed: int, sample_index: int) -> mx.array:
    """The random key of the token at a position: the first 64 bits of BLAKE2b over seed and position."""
    digest = hashlib.blake2b(
        (seed % 2**SEED_BITS).to_bytes(8, "big") + sample_index.to_bytes(8, "big"), digest_size=8
    ).digest()
    return mx.random.key(int.from_bytes(digest, "big"))


def choose(logits: mx.array, sampling: Sampling, sample_index: int) -> tuple[mx.array, mx.array]:
    """The token after these logits and the logarithm of its probability; neither is evaluated.

    Args:
        logits: shape (1, vocabulary).
        sampling: how to choose.
        sample_index: tokens generated before this one.

    Returns:
        Token id and natural logarithm of its probability before any filter, both of shape (1,).
    """
    logprobs = logits - mx.logsumexp(logits, keepdims=True)
    if sampling.temperature == 0:
        token = mx.argmax(logprobs, axis=-1)
    else:
        filtered = logprobs
        if 0 < sampling.top_p < 1:
            filtered = apply_top_p(filtered, sampling.top_p)
        if sampling.min_p > 0:
            filtered = apply_min_p(filtered, sampling.min_p)
        if 0 < sampling.top_k < logits.shape[-1]:
            filtered = apply_top_k(filtered, sampling.top_k)
        scaled = filtered * (1.0 / sampling.temperature)
        token = mx.random.categorical(scaled, key=token_key(sampling.seed, sample_index))
    return token, mx.take_along_axis(logprobs, token[:, None], axis=-1).squeeze(-1)
