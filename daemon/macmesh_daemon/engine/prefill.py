"""How much of which prompt goes next. Pure."""

from collections.abc import Sequence

from macmesh_daemon.engine.limits import Limits
from macmesh_daemon.engine.running import Running

_STEP_TOKENS = 32
"""Chunks below the largest are multiples of it."""
_NEWEST_WEIGHT = 0.5
_UNMEASURED_SHARE = 4
"""A first chunk beside running requests is so much smaller than the largest."""


class ChunkSizer:
    """Chooses the size of chunks by the delay that the last ones caused.

    While nothing else runs, chunks are as large as the plan allows. While others decode, the delay of a chunk stays
    within the slice. What counts is the delay at the head, from the result before the chunk's to the chunk's own: the
    time of no single stage tells it, least of all the tail's, which computes nothing of the last layer but its cache.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
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

    def tokens(self, *, others_decode: bool) -> int:
        """Most tokens of the next chunk."""
        largest = self._limits.prefill_chunk_tokens
        if not others_decode:
            return largest
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
