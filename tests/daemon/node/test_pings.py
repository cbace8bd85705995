"""A worker's figures: fresh where it answers in time, the newest with their age where it does not."""

import asyncio

import pytest

from macmesh.reasons import Reason
from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.node.call_errors import CallError
from macmesh_daemon.node.pings import Pings, stats_of
from support.virtual_loop import run_virtual

TIMES = lane_pb2.StepTimes(
    describe=lane_pb2.PhaseTime(seconds=0.5, count=10),
    wait=lane_pb2.PhaseTime(seconds=2, count=10),
    ahead_used=7,
)


def pong(nonce: int, steps: int = 10) -> lane_pb2.PongWorker:
    return lane_pb2.PongWorker(
        nonce=nonce, steps=steps, active_memory_bytes=5, peak_memory_bytes=6, times=TIMES
    )


async def silent(nonce: int) -> None:
    del nonce


def test_every_phase_and_count_is_told_by_its_name() -> None:
    stats = stats_of(pong(1), age_seconds=1.5)
    assert (stats.steps, stats.active_memory_bytes, stats.peak_memory_bytes) == (10, 5, 6)
    assert stats.age_seconds == 1.5
    told = {p.name: (p.seconds, p.count) for p in stats.phases}
    assert told["describe"] == (0.5, 10)
    assert told["wait"] == (2, 10)
    assert told["idle"] == (0, 0)
    assert {c.name: c.value for c in stats.counters}["ahead_used"] == 7
    assert len(stats.phases) + len(stats.counters) == len(lane_pb2.StepTimes.DESCRIPTOR.fields)


def test_a_worker_without_times_tells_its_memory() -> None:
    stats = stats_of(lane_pb2.PongWorker(steps=3, peak_memory_bytes=9))
    assert (stats.steps, stats.peak_memory_bytes, len(stats.phases)) == (3, 9, 0)


def test_the_newest_figures_cost_no_ping_and_tell_their_age_and_the_schedule() -> None:
    async def scene() -> None:
        pings = Pings()
        with pytest.raises(CallError) as never:
            pings.newest()
        assert never.value.reason is Reason.NOT_READY
        told = pong(1)
        told.scheduler.CopyFrom(peer_pb2.SchedulerStats(prompts=4, prefix_hits=3))
        pings.take(told)
        await asyncio.sleep(1.5)
        newest = pings.newest()
        assert newest.age_seconds == pytest.approx(1.5)
        assert (newest.scheduler.prompts, newest.scheduler.prefix_hits) == (4, 3)
        pings.take(pong(2))
        assert not pings.newest().HasField("scheduler")
        pings.end()
        with pytest.raises(CallError):
            pings.newest()

    run_virtual(scene())


def test_an_answer_reaches_who_asked_and_no_other() -> None:
    async def scene() -> None:
        pings = Pings()
        asked: list[int] = []

        async def note(nonce: int) -> None:
            asked.append(nonce)
            if len(asked) == 2:
                pings.take(pong(1))  # the supervisor's own
                for each in reversed(asked):
                    pings.take(pong(each, steps=each))

        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(pings.ask(note, 5)) for _ in range(2)]
        assert [task.result().steps for task in both] == asked
        assert all(nonce > 1 << 31 for nonce in asked)

    run_virtual(scene())


def test_a_busy_worker_gives_its_newest_figures_with_their_age() -> None:
    async def scene() -> None:
        pings = Pings()
        with pytest.raises(CallError) as never:
            await pings.ask(silent, 5)
        assert never.value.reason is Reason.NOT_READY
        pings.take(pong(1, steps=41))
        await asyncio.sleep(2)
        pings.take(pong(2, steps=42))
        await asyncio.sleep(3)
        stats = await pings.ask(silent, 5)
        assert stats.steps == 42
        assert stats.age_seconds == pytest.approx(8)

    run_virtual(scene())


def test_the_end_of_the_worker_ends_every_question() -> None:
    async def scene() -> None:
        pings = Pings()
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(_reason(pings))
            await asyncio.sleep(1)
            pings.end()
        assert asked.result() is Reason.WORKER_FAILED
        assert await _reason(pings) is Reason.WORKER_FAILED

    run_virtual(scene())


async def _reason(pings: Pings) -> Reason:
    with pytest.raises(CallError) as caught:
        await pings.ask(silent, 5)
    return caught.value.reason
