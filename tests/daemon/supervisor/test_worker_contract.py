"""The contract of `Worker`, held against the fake and against a real process."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.supervisor.errors import (
    LocalWorkerStartError,
    LocalWorkerStateError,
    RemoteWorkerEndedError,
)
from macmesh_daemon.supervisor.interface import Worker
from macmesh_daemon.supervisor.process import WorkerProcess
from macmesh_daemon.supervisor.testing import FakeWorker, fake_token

EPOCH = types_pb2.Epoch(generation=1, term=2, seq=3)
SERVER = Path(__file__).parent / "fake_worker_main.py"


def process_worker(*arguments: str, **options: float) -> WorkerProcess:
    return WorkerProcess(command=(sys.executable, str(SERVER), *arguments), **options)  # type: ignore[arg-type]


@pytest.fixture(params=["fake", pytest.param("process", marks=pytest.mark.process)])
def make_worker(request: pytest.FixtureRequest) -> Callable[[], Worker]:
    return FakeWorker if request.param == "fake" else process_worker


@pytest.fixture(params=["fake", pytest.param("process", marks=pytest.mark.process)])
def make_losing_worker(request: pytest.FixtureRequest) -> Callable[[], Worker]:
    if request.param == "fake":
        return lambda: FakeWorker(gate=asyncio.Event())
    return lambda: process_worker("--lose-peer")


def start_stage(stage_index: int = 0, context_tokens: int = 100) -> lane_pb2.StartStage:
    return lane_pb2.StartStage(
        epoch=EPOCH,
        deployment=types_pb2.Deployment(
            layer_count=4,
            context_tokens=context_tokens,
            slots=2,
            stages=[
                types_pb2.Stage(index=0, node_id="a", first_layer=0, end_layer=2),
                types_pb2.Stage(index=1, node_id="b", first_layer=2, end_layer=4),
            ],
        ),
        stage_index=stage_index,
        model_path="/nowhere",
        bind_host="127.0.0.1",
    )


async def until_state(worker: Worker, state: int) -> list[peer_pb2.WorkerReport]:
    """Reports up to the first of a state."""
    reports = []
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "report":
                reports.append(event.report)
                if event.report.state == state:
                    return reports
    raise AssertionError(f"ended before the state: {reports}")


async def drain(worker: Worker) -> list[lane_pb2.WorkerEvent]:
    async with asyncio.timeout(60):
        return [event async for event in worker.events()]


async def ready_worker(worker: Worker) -> None:
    await worker.start(start_stage())
    await until_state(worker, peer_pb2.WORKER_STATE_LOADED)
    await worker.set_peers(peer_pb2.SetPeersRequest())
    await until_state(worker, peer_pb2.WORKER_STATE_READY)


def run_request(
    request_id: str, prompt: Sequence[int] = (1, 2), max_tokens: int = 3
) -> peer_pb2.RunRequestRequest:
    return peer_pb2.RunRequestRequest(
        epoch=EPOCH, request_id=request_id, prompt_token_ids=prompt, max_tokens=max_tokens
    )


async def test_life_from_start_to_stop(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    assert worker.pid is None
    await worker.start(start_stage(stage_index=1))
    assert worker.pid is not None
    reports = await until_state(worker, peer_pb2.WORKER_STATE_LOADED)
    assert reports[0].state == peer_pb2.WORKER_STATE_STARTING
    assert peer_pb2.WORKER_STATE_LOADING in [r.state for r in reports]
    assert {r.stage_index for r in reports} == {1}
    assert all(r.epoch == EPOCH for r in reports)
    assert reports[-1].control_address
    assert reports[-1].tensor_address
    await worker.set_peers(peer_pb2.SetPeersRequest())
    await until_state(worker, peer_pb2.WORKER_STATE_READY)
    await worker.stop(10)
    assert worker.pid is None
    events = await drain(worker)
    assert events[-1].report.state == peer_pb2.WORKER_STATE_STOPPED
    assert events[-1].report.stage_index == 1


async def test_a_ping_is_answered_with_memory_and_times(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    await ready_worker(worker)
    await worker.ping(1 << 40)
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "pong" and event.pong.nonce == 1 << 40:
                break
    assert event.pong.peak_memory_bytes >= event.pong.active_memory_bytes > 0
    assert event.pong.HasField("times")
    await worker.stop(10)


async def test_request_ends_once_with_its_tokens_in_order(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    await ready_worker(worker)
    await worker.submit(run_request("r1"))
    tokens: list[int] = []
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "progress":
                response = event.progress.response
                assert response.index == len(tokens)
                assert response.has_token
                tokens.append(response.token_id)
                if response.finish_reason:
                    assert response.finish_reason == inference_pb2.FINISH_REASON_LENGTH
                    break
    assert tokens == [fake_token((1, 2), i) for i in range(3)]
    await worker.stop(10)
    assert [e.WhichOneof("event") for e in await drain(worker) if e.WhichOneof("event") != "pong"] == [
        "report"
    ]


async def test_a_run_goes_on_behind_what_was_generated_before(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    await ready_worker(worker)
    request = run_request("r1/2", max_tokens=4)
    request.generated_token_ids.extend(fake_token((1, 2), i) for i in range(2))
    await worker.submit(request)
    told: list[tuple[int, int]] = []
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "progress":
                response = event.progress.response
                told.append((response.index, response.token_id))
                if response.finish_reason:
                    break
    assert told == [(i, fake_token((1, 2), i)) for i in (2, 3)]
    await worker.stop(10)


async def test_too_long_request_is_refused_with_a_reason(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    await ready_worker(worker)
    await worker.submit(run_request("r1", max_tokens=99))
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "failed":
                assert event.failed.reason == "CONTEXT_LENGTH_EXCEEDED"
                break
    await worker.stop(10)


async def test_request_of_another_epoch_is_refused(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    await ready_worker(worker)
    stale = run_request("r1")
    stale.epoch.seq = 2
    await worker.submit(stale)
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "failed":
                assert event.failed.reason == "EPOCH_CHANGED"
                break
    await worker.stop(10)


def next_stage(seq: int = 4) -> lane_pb2.StartStage:
    """The other stage of the next epoch, with one layer more."""
    start = start_stage(stage_index=0)
    start.epoch.seq = seq
    start.deployment.stages[0].end_layer = 3
    start.deployment.stages[1].first_layer = 3
    return start


async def test_one_process_serves_epochs_in_turn(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    await ready_worker(worker)
    pid = worker.pid
    assert not worker.resting
    with pytest.raises(LocalWorkerStateError, match="does not rest"):
        await worker.restart(next_stage())
    await worker.submit(run_request("r1", max_tokens=90))
    await worker.retire(10)
    assert worker.resting
    *_, failed, final = await drain(worker)
    assert (final.report.state, final.report.resting) == (peer_pb2.WORKER_STATE_STOPPED, True)
    assert final.report.epoch == EPOCH
    if failed.WhichOneof("event") == "failed":  # else it was through before it was asked to end
        assert failed.failed.reason == "WORKER_FAILED"
    with pytest.raises(RemoteWorkerEndedError):
        await worker.submit(run_request("r2"))
    await worker.retire(10)

    await worker.restart(next_stage())
    reports = await until_state(worker, peer_pb2.WORKER_STATE_LOADED)
    assert reports[0].state == peer_pb2.WORKER_STATE_STARTING
    assert all(report.epoch == next_stage().epoch for report in reports)
    assert 0 < reports[-1].kept_bytes < reports[-1].loaded_bytes
    await worker.set_peers(peer_pb2.SetPeersRequest())
    await until_state(worker, peer_pb2.WORKER_STATE_READY)
    await worker.submit(run_request("r3", max_tokens=1))
    await worker.send(lane_pb2.WorkerCommand(retire=lane_pb2.RetireEpoch(epoch=EPOCH)))
    request = run_request("r4", max_tokens=1)
    request.epoch.CopyFrom(next_stage().epoch)
    await worker.submit(request)
    ends: dict[str, str] = {}
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "failed":
                ends[event.failed.request_id] = event.failed.reason
            elif event.WhichOneof("event") == "progress":
                ends[event.progress.request_id] = "done"
            if len(ends) == 2:
                break
    assert ends == {"r3": "EPOCH_CHANGED", "r4": "done"}
    assert (worker.pid, worker.resting) == (pid, False)
    await worker.retire(10)
    await worker.stop(10)
    assert (worker.pid, worker.resting) == (None, False)
    with pytest.raises(RemoteWorkerEndedError):
        await worker.restart(next_stage(5))


async def test_a_worker_that_lost_another_stage_rests(make_losing_worker: Callable[[], Worker]) -> None:
    worker = make_losing_worker()
    await ready_worker(worker)
    await worker.submit(run_request("r1"))
    if isinstance(worker, FakeWorker):
        worker.lose_peer()
    *_, failed, final = await drain(worker)
    assert failed.failed.request_id == "r1"
    report = final.report
    assert (report.state, report.resting, report.peer_lost) == (peer_pb2.WORKER_STATE_FAILED, True, True)
    assert report.error == "stage 1 is lost"
    assert worker.resting
    await worker.restart(next_stage())
    await until_state(worker, peer_pb2.WORKER_STATE_LOADED)
    await worker.stop(10)
    assert (await drain(worker))[-1].report.state == peer_pb2.WORKER_STATE_STOPPED


@pytest.mark.process
async def test_an_epoch_that_does_not_end_takes_its_process_along() -> None:
    worker = process_worker("--ignore-stop")
    await ready_worker(worker)
    await worker.retire(0.2)
    assert (worker.pid, worker.resting) == (None, False)
    report = (await drain(worker))[-1].report
    assert (report.state, report.resting) == (peer_pb2.WORKER_STATE_STOPPED, False)


@pytest.mark.process
async def test_a_process_that_dies_at_rest_cannot_be_restarted() -> None:
    worker = process_worker(ping_interval_seconds=0.02)
    await ready_worker(worker)
    await worker.retire(10)
    await drain(worker)
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        await worker._done.wait()
    assert not worker.resting
    with pytest.raises(RemoteWorkerEndedError, match="while it rested"):
        await worker.restart(next_stage())


async def test_ping_is_answered(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    await ready_worker(worker)
    await worker.ping(77)
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "pong" and event.pong.nonce == 77:
                break
    await worker.stop(10)


async def test_cancel_of_an_unknown_request_is_ignored(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    await ready_worker(worker)
    await worker.cancel("nobody")
    await worker.submit(run_request("r1", max_tokens=1))
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "progress":
                assert event.progress.request_id == "r1"
                break
    await worker.stop(10)


async def test_wrong_use_is_refused(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    with pytest.raises(LocalWorkerStateError, match="not started"):
        await worker.ping(1)
    await worker.start(start_stage())
    with pytest.raises(LocalWorkerStateError, match="once"):
        await worker.start(start_stage())
    with pytest.raises(LocalWorkerStateError, match="started by start"):
        await worker.send(lane_pb2.WorkerCommand(start=start_stage()))
    await worker.stop(10)
    await worker.stop(10)
    with pytest.raises(RemoteWorkerEndedError):
        await worker.ping(1)


async def test_stop_before_start_ends_the_events(make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    await worker.stop(1)
    (event,) = await drain(worker)
    assert event.report.state == peer_pb2.WORKER_STATE_STOPPED


async def test_fake_that_dies_reports_failed_and_closes_its_requests() -> None:
    gate = asyncio.Event()
    worker = FakeWorker(gate=gate)
    await ready_worker(worker)
    await worker.submit(run_request("r1"))
    worker.die("killed in a test")
    *_, failed, report = await drain(worker)
    assert (failed.failed.request_id, failed.failed.reason) == ("r1", "WORKER_FAILED")
    assert report.report.state == peer_pb2.WORKER_STATE_FAILED
    assert report.report.error == "killed in a test"


async def test_fake_cancel_in_the_middle() -> None:
    gate = asyncio.Event()
    worker = FakeWorker(gate=gate)
    await ready_worker(worker)
    await worker.submit(run_request("r1", max_tokens=50))
    await worker.cancel("r1")
    gate.set()
    await worker.stop(1)
    *_, progress, report = await drain(worker)
    assert progress.progress.response.finish_reason == inference_pb2.FINISH_REASON_CANCELLED
    assert not progress.progress.response.has_token
    assert report.report.state == peer_pb2.WORKER_STATE_STOPPED


async def test_fake_load_error() -> None:
    worker = FakeWorker(load_error="no such model")
    await worker.start(start_stage())
    *_, report = await drain(worker)
    assert (report.report.state, report.report.error) == (peer_pb2.WORKER_STATE_FAILED, "no such model")


@pytest.mark.process
async def test_killed_process_is_reported_with_the_signal_and_its_last_words() -> None:
    worker = process_worker("--say", "what went wrong", "--hold")
    await ready_worker(worker)
    await worker.submit(run_request("r1"))
    await worker.ping(5)
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "pong" and event.pong.nonce == 5:
                break
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    events = await drain(worker)
    assert events[-2].failed.reason == "WORKER_FAILED"
    report = events[-1].report
    assert report.state == peer_pb2.WORKER_STATE_FAILED
    assert "SIGKILL" in report.error
    assert "what went wrong" in report.error
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.process
async def test_own_failure_is_told_in_the_workers_words_after_its_end() -> None:
    worker = process_worker("--fail-load", "weights are broken")
    await worker.start(start_stage())
    events = await drain(worker)
    assert events[-1].report.state == peer_pb2.WORKER_STATE_FAILED
    assert events[-1].report.error == "weights are broken"
    assert worker.pid is None
    assert sum(e.report.state == peer_pb2.WORKER_STATE_FAILED for e in events) == 1


@pytest.mark.process
@pytest.mark.parametrize("rings", [True, False])
async def test_rings_are_used_where_they_can_be_and_a_socket_is_told(*, rings: bool) -> None:
    lines: list[str] = []
    worker = WorkerProcess(command=(sys.executable, str(SERVER)), on_log_line=lines.append, rings=rings)
    await ready_worker(worker)
    assert worker.port_kind == ("ring" if rings else "socket")
    assert any("socket was asked for" in line for line in lines) is not rings
    prompt = list(range(250_000))  # as protobuf: more than a ring holds, and than a socket takes at once
    request = run_request("long", prompt, max_tokens=1)
    request.ClearField("epoch")
    await worker.submit(request)
    async with asyncio.timeout(60):
        async for event in worker.events():
            if event.WhichOneof("event") == "failed":
                assert event.failed.reason == "EPOCH_CHANGED"
                break
    await worker.stop(10)
    assert (await drain(worker))[-1].report.state == peer_pb2.WORKER_STATE_STOPPED


@pytest.mark.process
async def test_worker_that_ignores_stop_is_killed() -> None:
    worker = process_worker("--ignore-stop")
    await ready_worker(worker)
    await worker.stop(0.2)
    assert worker.pid is None
    assert (await drain(worker))[-1].report.state == peer_pb2.WORKER_STATE_STOPPED


@pytest.mark.process
async def test_worker_whose_loop_hangs_is_killed() -> None:
    worker = process_worker("--deaf", ping_interval_seconds=0.05, hang_deadline_seconds=0.3)
    start = start_stage()
    start.sync_mode, start.sync_reason = "fast", "asked for"
    await worker.start(start)
    await until_state(worker, peer_pb2.WORKER_STATE_LOADED)
    await worker.set_peers(peer_pb2.SetPeersRequest())
    final = (await drain(worker))[-1].report
    assert final.state == peer_pb2.WORKER_STATE_FAILED
    assert "did not turn" in final.error
    assert (final.hung, final.sync_mode, final.sync_reason) == (True, "fast", "asked for")


@pytest.mark.process
async def test_garbage_from_the_worker_ends_it() -> None:
    worker = process_worker("--garbage")
    await worker.start(start_stage())
    events = await drain(worker)
    assert events[-1].report.state == peer_pb2.WORKER_STATE_FAILED
    assert "no event" in events[-1].report.error


@pytest.mark.process
async def test_a_worker_that_scribbles_over_the_ring_is_killed() -> None:
    worker = process_worker("--scribble", hang_deadline_seconds=60)
    await ready_worker(worker)
    # The first ping is the watch's; it makes the worker scribble, and any later command finds that out.

    async def ping_on() -> None:
        while True:
            await worker.ping(7)
            await asyncio.sleep(0.01)

    with pytest.raises(RemoteWorkerEndedError):
        await asyncio.wait_for(ping_on(), 60)
    report = (await drain(worker))[-1].report
    assert report.state == peer_pb2.WORKER_STATE_FAILED
    assert "SIGKILL" in report.error
    assert "broke the connection" in report.error


@pytest.mark.process
async def test_program_that_does_not_exist() -> None:
    worker = WorkerProcess(command=("/no/such/program",))
    with pytest.raises(LocalWorkerStartError, match="/no/such/program"):
        await worker.start(start_stage())
    (event,) = await drain(worker)
    assert event.report.state == peer_pb2.WORKER_STATE_FAILED


async def stuck_worker(how: str, *, step_deadline_seconds: float, **options: float) -> peer_pb2.WorkerReport:
    """The last report of a worker that sleeps in native code with the interpreter's lock from its first request on."""
    worker = process_worker("--stuck", how, **options)
    start = start_stage(stage_index=1)
    start.step_deadline_seconds, start.sync_mode = step_deadline_seconds, "fast"
    await worker.start(start)
    await until_state(worker, peer_pb2.WORKER_STATE_LOADED)
    await worker.set_peers(peer_pb2.SetPeersRequest())
    await until_state(worker, peer_pb2.WORKER_STATE_READY)
    await worker.submit(run_request("r1"))
    *_, failed, final = await drain(worker)
    assert failed.failed.request_id == "r1"
    return final.report


@pytest.mark.process
async def test_a_worker_that_hangs_with_the_interpreters_lock_is_caught_without_pings() -> None:
    report = await stuck_worker(
        "step", step_deadline_seconds=0.6, ping_interval_seconds=600.0, hang_deadline_seconds=600.0
    )
    assert report.state == peer_pb2.WORKER_STATE_FAILED
    assert "worker of stage 1" in report.error
    assert "hangs in step 41, after layer 6: nothing moved for " in report.error
    assert (report.hung, report.sync_mode) == (True, "fast")


@pytest.mark.process
async def test_pings_are_the_second_line() -> None:
    report = await stuck_worker(
        "idle", step_deadline_seconds=0.1, ping_interval_seconds=0.05, hang_deadline_seconds=1.0
    )
    assert "did not turn for 1 s" in report.error
    assert report.hung
