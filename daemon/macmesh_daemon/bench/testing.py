"""A target with times and memory of one's choice, for tests in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from macmesh.v1 import cluster_pb2, peer_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from macmesh import StagesStats


class FakeTarget:
    """Generates one request at a time for each slot, with constant times, and remembers the prompts it has read.

    Args:
        context_tokens: Of the plan.
        slots: Requests at once; others wait.
        stages: Of the plan.
        prefill_seconds_per_token: For tokens of a prompt that it has not read.
        decode_seconds: For each response.
        burst: Tokens in each response.
        vocabulary_tokens: Prompts and answers lie below this.
        memory_bytes_per_token: What each stage's peak grows by with the longest request so far.
        ledger_bytes: Of each stage.
    """

    def __init__(
        self,
        *,
        context_tokens: int = 4096,
        slots: int = 1,
        stages: int = 2,
        prefill_seconds_per_token: float = 0.001,
        decode_seconds: float = 0.05,
        burst: int = 1,
        vocabulary_tokens: int = 1000,
        memory_bytes_per_token: int = 10,
        ledger_bytes: int = 50_000,
    ) -> None:
        self.seq = 1
        self.silent_stage: int | None = None
        self.prompts: list[tuple[int, ...]] = []
        self.short = 0
        """Tokens that every answer lacks."""
        self.largest_at_once = 0
        self._context_tokens = context_tokens
        self._slots = asyncio.Semaphore(slots)
        self._slot_count = slots
        self._stages = stages
        self._prefill_seconds = prefill_seconds_per_token
        self._decode_seconds = decode_seconds
        self._burst = burst
        self._vocabulary_tokens = vocabulary_tokens
        self._memory_bytes = memory_bytes_per_token
        self._ledger_bytes = ledger_bytes
        self._steps = 0
        self._longest = 0
        self._at_once = 0

    async def stage_stats(self) -> StagesStats:
        """See `Target.stage_stats`; every step has 1 ms in each of describe, receive and send."""
        answer = cluster_pb2.GetStageStatsResponse(
            epoch=types_pb2.Epoch(generation=1, term=1, seq=self.seq),
            model=types_pb2.ModelRef(model_id="fake", path="/nowhere"),
            context_tokens=self._context_tokens,
            slots=self._slot_count,
            prefill_chunk_tokens=512,
            vocabulary_tokens=self._vocabulary_tokens,
        )
        memory_bytes = 1000 + self._longest * self._memory_bytes
        for index in range(self._stages):
            entry = types_pb2.LedgerEntry(name="weights", size_bytes=self._ledger_bytes)
            stage = types_pb2.Stage(
                index=index,
                node_id=f"node{index}",
                first_layer=index,
                end_layer=index + 1,
                ledger=types_pb2.Ledger(entries=[entry]),
            )
            measured = cluster_pb2.MeasuredStage(stage=stage)
            if index == self.silent_stage:
                measured.reason = "it does not answer"
            else:
                measured.stats.CopyFrom(
                    peer_pb2.StageStats(
                        steps=self._steps,
                        active_memory_bytes=memory_bytes,
                        peak_memory_bytes=memory_bytes,
                        phases=[
                            peer_pb2.StagePhase(name=name, seconds=self._steps * 0.001, count=self._steps)
                            for name in ("describe", "receive", "send")
                        ],
                    )
                )
            answer.stages.append(measured)
        return answer

    async def generate(
        self, token_ids: Sequence[int], max_tokens: int
    ) -> AsyncGenerator[tuple[int, ...], None]:
        """See `Target.generate`."""
        ids = tuple(token_ids)
        async with self._slots:
            self._at_once += 1
            self.largest_at_once = max(self.largest_at_once, self._at_once)
            try:
                yield ()
                unread = len(ids) - max((_common(ids, known) for known in self.prompts), default=0)
                self.prompts.append(ids)
                self._longest = max(self._longest, len(ids) + max_tokens)
                await asyncio.sleep(unread * self._prefill_seconds)
                left = max_tokens - self.short
                while left > 0:
                    await asyncio.sleep(self._decode_seconds)
                    count = min(self._burst, left)
                    self._steps += count
                    left -= count
                    yield tuple((sum(ids) + left + i) % self._vocabulary_tokens for i in range(count))
            finally:
                self._at_once -= 1


def _common(ids: tuple[int, ...], known: tuple[int, ...]) -> int:
    """Length of the prefix that two prompts share."""
    pairs = zip(ids, known, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(known)))
