"""The facts about RDMA devices: what a node tells at its start, and when a cable comes."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from macmesh_daemon.clock import ManualClock
from macmesh_daemon.node import rdma_watch
from macmesh_daemon.node.rdma_watch import INTERVAL_SECONDS, RdmaWatch, system_reader
from macmesh_daemon.node.verbs_keeper import VerbsKeeper
from macmesh_rdma.jaccl.facts import RdmaFacts
from macmesh_rdma.verbs.facts import VerbsFacts

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


async def test_a_verbs_library_is_asked_where_the_system_has_rdma(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    async def ask(library: str) -> VerbsFacts:
        asked.append(library)
        return VerbsFacts(refused="it lists nothing")

    async def system(*_: object, macos_build: str, mlx_version: str) -> RdmaFacts:
        return RdmaFacts(macos_build, mlx_version, refused=refusal)

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(rdma_watch, "rdma_facts", system)
    read = system_reader(
        macos_build="25C56", mlx_version="0.32.4", verbs=VerbsKeeper(tmp_path, wanted=True, ask=ask)
    )
    refusal = "RDMA is not enabled"
    assert not (await read()).verbs.is_told
    refusal = ""
    assert (await read()).verbs.refused == "it lists nothing"
    assert asked == [""]
    named = system_reader(
        macos_build="25C56", mlx_version="0.32.4", verbs=VerbsKeeper(tmp_path, library="/lib", ask=ask)
    )
    refusal = "RDMA is not enabled"
    assert (await named()).verbs.is_told


async def test_what_has_changed_can_be_told_at_once() -> None:
    answers, told = [NONE], list[str]()

    async def read() -> RdmaFacts:
        return answers[0]

    watch = RdmaWatch(read, changes=True)
    await watch.first()
    await watch.look()  # nobody listens yet
    clock = ManualClock()
    task = asyncio.create_task(watch.run(clock, told.append))
    await clock.settle()
    answers[0] = CABLE
    await watch.look()
    await watch.look()
    assert [facts(text) for text in told] == [CABLE]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
