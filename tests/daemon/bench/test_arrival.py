"""What a stream notices of a long prompt, against a target whose times are known, in virtual time."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from macmesh_daemon.bench.arrival import STEADY_TOKENS, gaps, measure_arrival
from macmesh_daemon.bench.errors import LocalBenchArgumentError, RemoteAnswerError
from macmesh_daemon.bench.requests import Arrival, RequestRun
from macmesh_daemon.bench.results import BenchReport
from macmesh_daemon.bench.schedule import ScheduleWork, added_schedules, schedule_work
from macmesh_daemon.bench.target import served_of
from macmesh_daemon.bench.testing import FakeTarget
from support.virtual_loop import LoopClock, run_virtual


class Stalling(FakeTarget):
    """Stands still for the whole prefill of every prompt but its first one, for 0.4 s."""

    def __init__(self) -> None:
        super().__init__(slots=2, decode_seconds=0.01, context_tokens=4096)
        self._free = asyncio.Event()
        self._free.set()

    async def generate(
        self, token_ids: Sequence[int], max_tokens: int
    ) -> AsyncGenerator[tuple[int, ...], None]:
        if self.prompts:
            self._free.clear()
            await asyncio.sleep(0.4)
            self._free.set()
        async for ids in super().generate(token_ids, max_tokens):
            await self._free.wait()
            yield ids


def test_a_gap_belongs_to_the_moments_that_it_touches() -> None:
    stream = RequestRun(1, 0.0, tuple(Arrival(at, (1,)) for at in (1.0, 2.0, 3.0, 6.0, 7.0, 8.0)))
    # Sent at 3.5, answered at 6.5: the gap from 3 to 6 and the one from 6 to 7 saw it.
    assert gaps(stream, 3.5, 6.5) == ([1.0, 1.0], [3.0, 1.0])


def test_what_comes_late_and_then_at_once_was_late() -> None:
    stream = RequestRun(1, 0.0, (Arrival(1.0, (1,)), Arrival(2.0, (1,)), Arrival(6.0, (1, 1, 1, 1))))
    assert gaps(stream, 2.0, 6.0) == ([1.0], [4.0])


def test_a_stall_is_seen_and_the_stream_is_left_after_it() -> None:
    async def scene() -> None:
        target = Stalling()
        served = served_of(await target.stage_stats())
        result = await measure_arrival(
            target, LoopClock(), served, prompt_tokens=1000, rounds=1, seed=0, vocabulary=1000
        )
        assert len(result.steady_seconds) == STEADY_TOKENS - 1
        assert max(result.steady_seconds) == pytest.approx(0.01)
        assert max(result.during_seconds) == pytest.approx(0.41, abs=0.011)
        # The stall, and then the prefill of 1,000 tokens, 1 ms each, beside which the stream runs.
        [first] = result.first_token_seconds
        assert first == pytest.approx(1.41, abs=0.02)
        assert sum(result.during_seconds) == pytest.approx(first, abs=0.03)
        report = BenchReport(served, 0, arrival=result)
        assert report.within_ledgers is True
        assert report.to_json()["arrival"]["during_ms"]["largest"] == pytest.approx(410, abs=11)

    run_virtual(scene())


def test_what_cannot_be_measured_is_refused() -> None:
    async def scene() -> None:
        narrow = FakeTarget(slots=1)
        with pytest.raises(LocalBenchArgumentError, match="--slots 2"):
            await measure_arrival(
                narrow,
                LoopClock(),
                served_of(await narrow.stage_stats()),
                prompt_tokens=100,
                rounds=1,
                seed=0,
                vocabulary=1000,
            )
        slow = FakeTarget(slots=2, context_tokens=1100, prefill_seconds_per_token=1)
        with pytest.raises(RemoteAnswerError, match="stream ended"):
            await measure_arrival(
                slow,
                LoopClock(),
                served_of(await slow.stage_stats()),
                prompt_tokens=1000,
                rounds=1,
                seed=0,
                vocabulary=1000,
            )

    run_virtual(scene())


def test_the_schedule_is_counted_from_look_to_look() -> None:
    async def scene() -> None:
        target = FakeTarget()
        before, after = await target.stage_stats(), await target.stage_stats()
        assert schedule_work(before, after) is None
        before.stages[0].stats.scheduler.prompts = 2
        now = after.stages[0].stats.scheduler
        now.prompts, now.prefix_hits, now.prompt_tokens, now.reused_tokens, now.entries = 6, 3, 400, 90, 2
        now.cache_bytes.extend([5, 6])
        now.cache_budget_bytes.extend([50, 60])
        work = schedule_work(before, after)
        assert work == ScheduleWork(4, 400, 3, 90, 2, (5, 6), (50, 60))
        assert work.prefix_hit_rate == 0.75
        both = added_schedules([work, work])
        assert both is not None
        assert (both.prompts, both.prefix_hits, both.entries, both.prefix_hit_rate) == (8, 6, 2, 0.75)
        assert added_schedules([work, None]) is None
        after.stages[0].reason = "old"
        assert schedule_work(before, after) is None

    run_virtual(scene())
