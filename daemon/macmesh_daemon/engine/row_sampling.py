"""Chooses the next token of every row of a step."""

from collections.abc import Sequence

import mlx.core as mx

from macmesh_daemon.engine.sampling import choose
from macmesh_daemon.engine.sampling_parameters import Sampling


def choose_rows(
    logits: mx.array,
    samplings: Sequence[Sampling],
    sample_indices: Sequence[int],
    histories: Sequence[mx.array | None],
) -> tuple[mx.array, mx.array]:
    """The token of each row and the logarithm of its probability; neither is evaluated.

    Each row gets the token that it would get alone. Rows that take the most probable token are done together.

    Args:
        logits: shape (rows, vocabulary).
        samplings: how to choose, for each row.
        sample_indices: tokens that each row generated before.
        histories: the last tokens of each row, where its logit processors look at them.

    Returns:
        Token ids and natural logarithms of their probabilities before any filter, both of shape (rows,).
    """
    if len(samplings) == 1:
        return choose(logits, samplings[0], sample_indices[0], histories[0])

    def one(row: int) -> tuple[mx.array, mx.array]:
        return choose(logits[row : row + 1], samplings[row], sample_indices[row], histories[row])

    single = [row for row, sampling in enumerate(samplings) if not _is_plain(sampling)]
    if len(single) == len(samplings):
        return _joined([one(row) for row in single])
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    tokens = mx.argmax(logprobs, axis=-1)
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1).squeeze(-1)
    if not single:
        return tokens, chosen
    rows = [(tokens[row : row + 1], chosen[row : row + 1]) for row in range(len(samplings))]
    for row in single:
        rows[row] = one(row)
    return _joined(rows)


def _is_plain(sampling: Sampling) -> bool:
    """Takes the most probable token of the model's own logits."""
    return sampling.temperature == 0 and not sampling.logit_bias and not sampling.history_tokens


def _joined(rows: list[tuple[mx.array, mx.array]]) -> tuple[mx.array, mx.array]:
    return mx.concatenate([token for token, _ in rows]), mx.concatenate([logprob for _, logprob in rows])
