"""The facts about RDMA devices: what a node tells at its start, and when a cable comes."""

import asyncio
import json
import sys

import pytest

from macmesh_daemon.clock import ManualClock
from macmesh_daemon.node import rdma_watch
from macmesh_daemon.node.rdma_watch import INTERVAL_SECONDS, RdmaWatch, system_reader
from macmesh_rdma.jaccl.facts import RdmaFacts

NONE = RdmaFacts(refused="nothing is connected")
CABLE = RdmaFacts("25C56", "0.32.4")


def facts(text: str) -> RdmaFacts:
    return RdmaFacts.from_json(json.loads(text))


async def test_a_change_is_told_once_and_silence_is_nothing_new() -> None:
    answers = [NONE, NONE, CABLE, CABLE, NONE]

    async def read() -> RdmaFacts:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    clock, told = ManualClock(), list[str]()
    watch = RdmaWatch(read, changes=True)
    assert facts(await watch.first()) == NONE
    task = asyncio.create_task(watch.run(clock, told.append))
    for _ in range(6):
        await clock.settle()
        await clock.advance(INTERVAL_SECONDS)
    await clock.settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [facts(text) for text in told] == [CABLE, NONE]


async def test_a_slow_machine_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdma_watch, "FIRST_DEADLINE_SECONDS", 0.01)
    slow = asyncio.Event()

    async def read() -> RdmaFacts:
        await slow.wait()
        return CABLE

    told: list[str] = []
    watch = RdmaWatch(read, changes=False)
    assert await watch.first() == ""
    slow.set()
    async with asyncio.timeout(60):
        await watch.run(ManualClock(), told.append)
    assert [facts(text) for text in told] == [CABLE]


@pytest.mark.skipif(sys.platform == "darwin", reason="it has other answers")
async def test_elsewhere_there_is_no_rdma_and_nothing_to_watch() -> None:
    watch = RdmaWatch(system_reader(macos_build="", mlx_version="0.32.4"))
    assert "macOS only" in json.loads(await watch.first())["refused"]
    async with asyncio.timeout(60):
        await watch.run(ManualClock(), pytest.fail)


async def test_an_unknown_build_of_macos_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "build of macOS" in (await system_reader(macos_build="", mlx_version="x")()).refused
