"""However often the status is asked for, the head's node is asked once a second at most."""

import asyncio

import pytest

from macmesh.reasons import Reason
from macmesh.v1 import peer_pb2
from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.node.call_errors import CallError
from macmesh_daemon.node.head_schedule import HeadSchedule
from support.virtual_loop import LoopClock, run_virtual

EPOCH = Epoch(1, 1, 1)


class Head:
    """Answers after a while, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Epoch, str]] = []
        self.broken = False
        self.schedules = True

    async def __call__(self, epoch: Epoch, node_id: str) -> peer_pb2.StageStats:
        self.asked.append((epoch, node_id))
        await asyncio.sleep(0.25)
        if self.broken:
            raise CallError(Reason.PEER_UNREACHABLE, "gone")
        stats = peer_pb2.StageStats(age_seconds=0.5)
        if self.schedules:
            stats.scheduler.prompts = len(self.asked)
        return stats


def test_those_who_ask_in_one_second_share_one_call() -> None:
    async def scene() -> None:
        head = Head()
        schedule = HeadSchedule(head, LoopClock())
        async with asyncio.TaskGroup() as tasks:
            many = [tasks.create_task(schedule.newest(EPOCH, "a")) for _ in range(5)]
        told = [task.result() for task in many]
        assert [stats and stats.scheduler.prompts for stats in told] == [1] * 5
        await asyncio.sleep(0.5)
        again = await schedule.newest(EPOCH, "a")
        assert again is not None
        assert again.age_seconds == pytest.approx(1.0)
        assert len(head.asked) == 1
        await asyncio.sleep(0.5)
        later = await schedule.newest(EPOCH, "a")
        assert later is not None
        assert (later.scheduler.prompts, later.age_seconds) == (2, 0.5)

    run_virtual(scene())


def test_another_plan_or_head_is_asked_at_once() -> None:
    async def scene() -> None:
        head = Head()
        schedule = HeadSchedule(head, LoopClock())
        for epoch, node_id in ((EPOCH, "a"), (EPOCH, "b"), (Epoch(1, 1, 2), "b")):
            await schedule.newest(epoch, node_id)
        assert head.asked == [(EPOCH, "a"), (EPOCH, "b"), (Epoch(1, 1, 2), "b")]

    run_virtual(scene())


def test_a_head_that_gives_nothing_is_not_asked_more_often() -> None:
    async def scene() -> None:
        head = Head()
        head.broken = True
        schedule = HeadSchedule(head, LoopClock())
        assert await schedule.newest(EPOCH, "a") is None
        assert await schedule.newest(EPOCH, "a") is None
        assert len(head.asked) == 1
        head.broken, head.schedules = False, False
        await asyncio.sleep(1)
        assert await schedule.newest(EPOCH, "a") is None
        assert len(head.asked) == 2

    run_virtual(scene())
