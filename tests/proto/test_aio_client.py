"""The async client against a fake daemon on a real Unix socket, in one event loop."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import macmesh
from macmesh.errors import (
    LocalClosedError,
    LocalDaemonNotRunningError,
    LocalDeadlineError,
    RemoteNotFoundError,
    RemoteUnavailableError,
)
from macmesh.reasons import Reason
from macmesh.testing import FakeDaemon, GenerateScript, ThreadedFakeDaemon, scenes
from macmesh.wire_errors import wire_failure

WAIT_SECONDS = 120.0


@pytest.fixture
async def client(fake: FakeDaemon) -> AsyncIterator[macmesh.AsyncClient]:
    async with macmesh.AsyncClient(fake.target) as client:
        yield client


async def cancelled(fake: FakeDaemon) -> bool:
    return await asyncio.to_thread(fake.cancelled.wait, WAIT_SECONDS)


async def test_status(client: macmesh.AsyncClient) -> None:
    assert await client.status() == scenes.ready()


async def test_generate_streams(client: macmesh.AsyncClient) -> None:
    async with client.generate("tell me", max_tokens=2) as generation:
        texts = [chunk.text async for chunk in generation]
    assert texts == ["Once", " upon"]
    assert generation.facts.request is not None
    assert generation.facts.finish_reason is macmesh.FinishReason.LENGTH


async def test_complete(client: macmesh.AsyncClient) -> None:
    done = await client.complete(token_ids=[1, 2, 3])
    assert (done.text, done.usage.prompt_tokens) == ("Once upon a time.", 3)


async def test_closing_cancels_the_call(fake: FakeDaemon, client: macmesh.AsyncClient) -> None:
    fake.script.generate = GenerateScript(hold_after=1)
    async with client.generate("x") as generation:
        assert (await anext(generation)).text == "Once"
    assert await cancelled(fake)
    with pytest.raises(LocalClosedError):
        await anext(generation)


async def test_cancelling_the_task_cancels_the_call(fake: FakeDaemon, client: macmesh.AsyncClient) -> None:
    fake.script.generate = GenerateScript(hold_after=1)
    generation = client.generate("x")
    await anext(generation)
    task = asyncio.create_task(anext(generation), name="waiting")
    await asyncio.wait([task], timeout=0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await cancelled(fake)


async def test_closing_while_another_task_waits(fake: FakeDaemon, client: macmesh.AsyncClient) -> None:
    fake.script.generate = GenerateScript(hold_after=1)
    generation = client.generate("x")
    await anext(generation)
    task = asyncio.create_task(anext(generation), name="waiting")
    await asyncio.wait([task], timeout=0.05)
    await generation.aclose()
    with pytest.raises(LocalClosedError):
        await task


async def test_deadlines(fake: FakeDaemon, client: macmesh.AsyncClient) -> None:
    fake.script.generate = GenerateScript(hold_after=0)
    with pytest.raises(LocalDeadlineError, match=r"0\.1 s"):
        await anext(client.generate("x", first_token_timeout_seconds=0.1))
    with pytest.raises(LocalDeadlineError, match=r"0\.1 s"):
        await client.complete("x", timeout_seconds=0.1)
    fake.script.generate = GenerateScript(hold_after=1)
    generation = client.generate("x", idle_timeout_seconds=0.1)
    await anext(generation)
    with pytest.raises(LocalDeadlineError):
        await anext(generation)
    fake.script.held = {"GetStatus"}
    with pytest.raises(LocalDeadlineError):
        await client.status(timeout_seconds=0.1)


async def test_errors_carry_their_reason(fake: FakeDaemon, client: macmesh.AsyncClient) -> None:
    fake.script.failures["PlanModel"] = wire_failure(Reason.MODEL_NOT_FOUND, "no model x", {"model": "x"})
    with pytest.raises(RemoteNotFoundError) as caught:
        await client.plan("x")
    assert (caught.value.reason, caught.value.metadata) == ("MODEL_NOT_FOUND", {"model": "x"})
    fake.script.generate = GenerateScript(fail_after=1, failure=wire_failure(Reason.EPOCH_CHANGED, "1.3.3"))
    generation = client.generate("x")
    await anext(generation)
    with pytest.raises(RemoteUnavailableError):
        await anext(generation)


async def test_load_plan_unload(client: macmesh.AsyncClient) -> None:
    phases: list[str] = []
    last = await client.load("m", on_progress=lambda step: phases.append(step.phase))
    assert last.phase == phases[-1] == "ready"
    assert (await client.plan("m")).feasible
    assert await client.unload() == "1.3.3"


async def test_watch(fake: FakeDaemon, client: macmesh.AsyncClient) -> None:
    async with client.watch() as updates:
        assert await anext(updates) == scenes.ready()
        fake.push_event("plan committed", epoch="1.3.2")
        event = await anext(updates)
        assert isinstance(event, macmesh.ClusterEvent)
        assert event.facts == {"epoch": "1.3.2"}
    assert await cancelled(fake)


async def test_not_running(socket_file: Path) -> None:
    async with macmesh.AsyncClient(socket_file) as client:
        with pytest.raises(LocalDaemonNotRunningError):
            await client.status()


async def test_closed(fake: FakeDaemon) -> None:
    client = macmesh.AsyncClient(fake.target)
    await client.status()
    await client.close()
    await client.close()
    with pytest.raises(LocalClosedError):
        await client.status()


async def test_many_at_once(client: macmesh.AsyncClient) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.complete(f"p{i}"), name=f"p{i}") for i in range(20)]
    assert {task.result().text for task in tasks} == {"Once upon a time."}


async def test_sync_and_async_clients_share_a_process(fake: FakeDaemon, client: macmesh.AsyncClient) -> None:
    def blocking() -> str:
        with macmesh.Client(fake.target) as sync_client:
            return sync_client.complete("x").text

    assert await asyncio.to_thread(blocking) == (await client.complete("x")).text


async def test_a_daemon_in_another_threads_loop(socket_file: Path) -> None:
    with ThreadedFakeDaemon(socket_file) as daemon:
        async with macmesh.AsyncClient(daemon.target) as client:
            assert (await client.complete("x")).text == "Once upon a time."


async def test_the_place_in_the_queue_comes_before_the_first_token(
    fake: FakeDaemon, client: macmesh.AsyncClient
) -> None:
    fake.script.generate = GenerateScript(waiting=(1,), hold_after=0)
    generation = client.generate("x", first_token_timeout_seconds=1.0, idle_timeout_seconds=0.001)
    assert (await anext(generation)).waiting == macmesh.Waiting(1, 1.5)
    with pytest.raises(LocalDeadlineError, match="1 s"):
        await anext(generation)
