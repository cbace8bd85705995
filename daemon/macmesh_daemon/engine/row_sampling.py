"""Chooses the next token of every row of a step."""

from collections.abc import Sequence

import mlx.core as mx

from macmesh_daemon.engine.sampling import choose
from macmesh_daemon.engine.sampling_parameters import Sampling


def choose_rows(
    logits: mx.array, samplings: Sequence[Sampling], sample_indices: Sequence[int]
) -> tuple[mx.array, mx.array]:
    """The token of each row and the logarithm of its probability; neither is evaluated.

    Each row gets the token that it would get alone. Rows that take the most probable token are done together.

    Args:
        logits: shape (rows, vocabulary).
        samplings: how to choose, for each row.
        sample_indices: tokens that each row generated before.

    Returns:
        Token ids and natural logarithms of their probabilities before any filter, both of shape (rows,).
    """
    if len(samplings) == 1:
        return choose(logits, samplings[0], sample_indices[0])
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature != 0]
    if len(drawn) == len(samplings):
        return _joined([_one(logits, samplings, sample_indices, row) for row in drawn])
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    tokens = mx.argmax(logprobs, axis=-1)
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1).squeeze(-1)
    if not drawn:
        return tokens, chosen
    rows = [(tokens[row : row + 1], chosen[row : row + 1]) for row in range(len(samplings))]
    for row in drawn:
        rows[row] = _one(logits, samplings, sample_indices, row)
    return _joined(rows)


def _one(
    logits: mx.array, samplings: Sequence[Sampling], sample_indices: Sequence[int], row: int
) -> tuple[mx.array, mx.array]:
    return choose(logits[row : row + 1], samplings[row], sample_indices[row])


def _joined(rows: list[tuple[mx.array, mx.array]]) -> tuple[mx.array, mx.array]:
    return mx.concatenate([token for token, _ in rows]), mx.concatenate([logprob for _, logprob in rows])
