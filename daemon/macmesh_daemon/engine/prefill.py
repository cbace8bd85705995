"""How much of which prompt goes next. Pure."""

import collections
import math
import statistics
from collections.abc import Sequence

from macmesh_daemon.engine.limits import Limits
from macmesh_daemon.engine.running import Running

_STEP_TOKENS = 32
"""Chunks below the largest are multiples of it."""
_NEWEST_WEIGHT = 0.5
_UNMEASURED_SHARE = 4
"""A first chunk beside running requests is so much smaller than the largest."""
_EVEN_STEP_TOKENS = 128
"""Chunks that share a prompt evenly are multiples of it: of what GPUs' matrix kernels take at once."""
_SAMPLES, _LEAST_SAMPLES = 9, 3
_FARTHEST_CHUNKS = 8
"""Chunks so far into a prompt tell nothing of what one costs: attention to what is before takes the time."""


class ChunkCost:
    """What a chunk costs besides its tokens, told from the time of whole chunks and of smaller ones.

    With ``a`` seconds for any chunk and ``b`` more for each token, chunks of c1 and c2 tokens take r1 = a / c1 + b and
    r2 = a / c2 + b seconds per token, which gives both.

    Args:
        largest_tokens: of a whole chunk.
        assumed_tokens: what to go by before smaller chunks were measured.
    """

    def __init__(self, largest_tokens: int, assumed_tokens: int) -> None:
        self._largest_tokens = largest_tokens
        self._assumed_tokens = assumed_tokens
        self._whole: collections.deque[tuple[float, int]] = collections.deque(maxlen=_SAMPLES)
        self._smaller: collections.deque[tuple[float, int]] = collections.deque(maxlen=_SAMPLES)

    def took(self, tokens: int, offset: int, seconds: float) -> None:
        """Takes the time by which a chunk's end followed that of the chunk before, in a full pipeline."""
        if tokens <= 0 or seconds <= 0 or offset > _FARTHEST_CHUNKS * self._largest_tokens:
            return
        if tokens == self._largest_tokens:
            self._whole.append((seconds / tokens, tokens))
        elif self._largest_tokens // 8 <= tokens <= self._largest_tokens * 3 // 4:
            self._smaller.append((seconds / tokens, tokens))

    @property
    def tokens(self) -> float | None:
        """``a / b``: so many tokens cost as much. None before whole chunks were measured; may be 0 or infinite."""
        if len(self._whole) < _LEAST_SAMPLES:
            return None
        if len(self._smaller) < _LEAST_SAMPLES:
            return self._assumed_tokens
        # The median of those measured, so that a chunk for which kernels were compiled counts for nothing.
        (whole, large), (smaller, small) = map(statistics.median_low, (self._whole, self._smaller))
        fixed = (smaller - whole) / (1 / small - 1 / large)
        per_token = whole - fixed / large
        return max(0.0, fixed) / per_token if per_token > 0 else math.inf


class ChunkSizer:
    """Chooses the size of chunks by the delay that the last ones caused.

    While nothing else runs, chunks are as large as the plan allows, or where there are several stages so large that a
    prompt takes least. While others decode, the delay of a chunk stays within the slice. What counts is the delay at
    the head, from the result before the chunk's to the chunk's own: the time of no single stage tells it, least of all
    the tail's, which computes nothing of the last layer but its cache.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.cost = ChunkCost(limits.prefill_chunk_tokens, limits.prefill_overhead_tokens)
        """What a chunk costs besides its tokens."""
        self._delay_per_token: float | None = None

    def took(self, tokens: int, seconds: float, *, others_decode: bool) -> None:
        """Takes what passed from the result before a chunk's to the chunk's own.

        Where chunks follow each other that is the time of the slowest stage alone; a decode step between them would
        meet a chunk on every stage at worst.
        """
        if tokens <= 0 or seconds <= 0:
            return
        newest = seconds / tokens * (1 if others_decode else self._limits.stages)
        before = self._delay_per_token
        self._delay_per_token = newest if before is None else before + _NEWEST_WEIGHT * (newest - before)

    def even_tokens(self, body_tokens: int) -> int:
        """Tokens of the chunks of a prompt that has the stages for itself.

        S stages are done with n chunks of c tokens, which take a + b c seconds on each, after (n + S - 1)(a + b c)
        seconds: the last stage waits for S - 1 chunks. With n = body / c that is least where
        c = sqrt(a / b * body / (S - 1)). Chunks of one size are best: the largest one counts for what is waited.
        """
        limits = self._limits
        largest, waits = limits.prefill_chunk_tokens, limits.stages - 1
        overhead = self.cost.tokens
        least = limits.prefill_even_least_tokens
        if not waits or overhead is None or not least < min(largest, body_tokens):
            return largest
        best = math.sqrt(min(overhead * body_tokens / waits, float(largest) ** 2))
        count = max(1, round(body_tokens / max(best, least)))
        steps = math.ceil(body_tokens / count / _EVEN_STEP_TOKENS)
        return min(steps * _EVEN_STEP_TOKENS, largest)

    def slice_tokens(self) -> int:
        """Most tokens of the next chunk while others decode."""
        largest = self._limits.prefill_chunk_tokens
        if self._delay_per_token is None:
            wanted = largest // _UNMEASURED_SHARE
        else:
            wanted = int(self._limits.prefill_slice_seconds / self._delay_per_token)
        wanted -= wanted % _STEP_TOKENS
        return min(max(wanted, self._limits.prefill_least_tokens), largest)


class PromptPicker:
    """Lets the oldest prompt and the one with least to do take turns.

    So a short prompt passes long ones, and the oldest always gets half of the chunks.
    """

    def __init__(self) -> None:
        self._oldest_next = True

    def pick(self, prompts: Sequence[Running]) -> Running:
        """The one whose chunk goes next, of those that have any left."""
        oldest = min(prompts, key=lambda running: running.order)
        shortest = min(prompts, key=lambda running: (running.body_left, running.order))
        chosen = oldest if self._oldest_next else shortest
        self._oldest_next = not self._oldest_next
        return chosen
