"""Chooses the next token from logits.

Filters and arithmetic are mlx-lm's own, in its order, so that the same logits give the same token as there.
Only the random key differs: mlx-lm draws from one global stream of numbers, here the key of a token is a
function of the request's seed and the token's position alone. So a request can be taken up again on any node,
and other requests do not disturb it.
"""

import hashlib

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_logits_processors

from macmesh_daemon.engine.sampling_parameters import Sampling

SEED_BITS = 64


def token_key(seed: int, sample_index: int) -> mx.array:
    """The random key of the token at a position: the first 64 bits of BLAKE2b over seed and position."""
    digest = hashlib.blake2b(
        (seed % 2**SEED_BITS).to_bytes(8, "big") + sample_index.to_bytes(8, "big"), digest_size=8
    ).digest()
    return mx.random.key(int.from_bytes(digest, "big"))


def processed(logits: mx.array, sampling: Sampling, history: mx.array | None) -> mx.array:
    """Logits with the request's bias and penalties, by mlx-lm's processors and in their order.

    Args:
        logits: shape (1, vocabulary); left as they are.
        sampling: how to choose.
        history: shape (tokens,): the last tokens before this position, `Sampling.history_tokens` of them or
            more; fewer where there are fewer. They may still have to be computed.
    """
    penalty, context = sampling.repetition_penalty, sampling.history_tokens
    if sampling.logit_bias or context:
        processors = make_logits_processors(
            logit_bias=dict(sampling.logit_bias) or None,
            repetition_penalty=penalty if penalty not in {0, 1} else None,
            repetition_context_size=context,
            presence_penalty=sampling.presence_penalty or None,
            presence_context_size=context,
            frequency_penalty=sampling.frequency_penalty or None,
            frequency_context_size=context,
        )
        # The processors write into what they are given.
        logits = mx.array(logits)
        tokens = mx.array([], mx.uint32) if history is None else history
        for process in processors:
            logits = process(tokens, logits)
    return logits


def extended_history(history: mx.array, token: mx.array, sampling: Sampling) -> mx.array:
    """The history with one more token, cut to what `processed` looks at; nothing is evaluated.

    Args:
        history: shape (tokens,).
        token: shape (1,): what was sampled.
        sampling: how long the history has to be.
    """
    joined = mx.concatenate([history.astype(mx.uint32), token.astype(mx.uint32)])
    return joined[-sampling.history_tokens :] if sampling.history_tokens else joined[:0]


def choose(
    logits: mx.array, sampling: Sampling, sample_index: int, history: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """The token after these logits and the logarithm of its probability; neither is evaluated.

    Args:
        logits: shape (1, vocabulary).
        sampling: how to choose.
        sample_index: tokens generated before this one.
        history: the last tokens, where `Sampling.history_tokens` asks for them; see `processed`.

    Returns:
        Token id and natural logarithm of its probability before any filter or processor, both of shape (1,).
    """
    logprobs = logits - mx.logsumexp(logits, keepdims=True)
    filtered = logprobs
    if sampling.logit_bias or sampling.history_tokens:
        filtered = processed(logits, sampling, history)
        filtered = filtered - mx.logsumexp(filtered, keepdims=True)
    if sampling.temperature == 0:
        token = mx.argmax(filtered, axis=-1)
    else:
        if 0 < sampling.top_p < 1:
            filtered = apply_top_p(filtered, sampling.top_p)
        if sampling.min_p > 0:
            filtered = apply_min_p(filtered, sampling.min_p)
        if 0 < sampling.top_k < logits.shape[-1]:
            filtered = apply_top_k(filtered, sampling.top_k)
        scaled = filtered * (1.0 / sampling.temperature)
        token = mx.random.categorical(scaled, key=token_key(sampling.seed, sample_index))
    return token, mx.take_along_axis(logprobs, token[:, None], axis=-1).squeeze(-1)
