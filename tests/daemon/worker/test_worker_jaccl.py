"""A plan over jaccl in real worker processes, with MLX's ring in the place of its backend."""

import asyncio
import os
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from macmesh.v1 import lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.supervisor.local_plan import local_plan, peers_of
from macmesh_daemon.supervisor.process import WorkerProcess
from macmesh_daemon.supervisor.verify import run_pipeline
from macmesh_daemon.worker.checks import check_start
from macmesh_daemon.worker.errors import LocalStartError
from tinymodels import write_tiny_model

MAIN = Path(__file__).parent / "jaccl_worker_main.py"
PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(37)]
REASON = "RDMA over Thunderbolt, a mesh with 1 cable(s) for each pair"
DEADLINE_SECONDS = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


def plan(folder: Path, stages: int) -> list[lane_pb2.StartStage]:
    """A plan over jaccl; stage a reaches stage b by device rdma_en<b>."""
    starts = local_plan(
        [folder] * stages,
        list(range(1, stages)),
        layer_count=4,
        context_tokens=200,
        prefill_chunk_tokens=8,
        step_deadline_seconds=60,
    )
    rows = [
        types_pb2.DeviceRow(
            cells=[types_pb2.DeviceList(devices=[] if a == b else [f"rdma_en{b}"]) for b in range(stages)]
        )
        for a in range(stages)
    ]
    for start in starts:
        start.deployment.transport = "jaccl"
        start.deployment.transport_reason = REASON
        start.deployment.device_matrix.CopyFrom(types_pb2.DeviceMatrix(rows=rows))
    return starts


def worker(fault: str = "", deadline_seconds: float = 60) -> WorkerProcess:
    return WorkerProcess(
        command=(sys.executable, str(MAIN)),
        environment={
            **os.environ,
            "JACCL_FAULT": fault,
            "JACCL_DEADLINE_SECONDS": str(deadline_seconds),
        },
    )


async def reached(worker: WorkerProcess, *states: peer_pb2.WorkerState.ValueType) -> peer_pb2.WorkerReport:
    async for event in worker.events():
        if event.WhichOneof("event") == "report" and event.report.state in states:
            return event.report
    raise AssertionError("the worker ended without that")


async def joined(
    starts: list[lane_pb2.StartStage], workers: list[WorkerProcess]
) -> list[peer_pb2.WorkerReport]:
    """How each worker came out of joining: READY or FAILED."""
    for each, start in zip(workers, starts, strict=True):
        await each.start(start)
    peers = peers_of(starts, [await reached(w, peer_pb2.WORKER_STATE_LOADED) for w in workers])
    for each in workers:
        await each.set_peers(peers)
    return [
        await reached(each, peer_pb2.WORKER_STATE_READY, peer_pb2.WORKER_STATE_FAILED) for each in workers
    ]


async def submit(starts: list[lane_pb2.StartStage], head: WorkerProcess, max_tokens: int) -> None:
    await head.submit(
        peer_pb2.RunRequestRequest(
            epoch=starts[0].epoch, request_id="r", prompt_token_ids=PROMPT, max_tokens=max_tokens
        )
    )


async def generated(starts: list[lane_pb2.StartStage], head: WorkerProcess, max_tokens: int) -> list[int]:
    await submit(starts, head, max_tokens)
    tokens = []
    async for event in head.events():
        if event.WhichOneof("event") == "progress":
            tokens.append(event.progress.response.token_id)
            if event.progress.response.finish_reason:
                return tokens
    raise AssertionError("the head ended")


@pytest.mark.process
async def test_stages_over_jaccl_give_the_tokens_of_one_process_and_tell_their_links(folder: Path) -> None:
    starts = plan(folder, 2)
    workers = [worker() for _ in starts]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for index, report in enumerate(await joined(starts, workers)):
                (link,) = report.links
                assert (link.peer_stage, link.provider, link.reason) == (1 - index, "jaccl", REASON)
                assert list(link.devices) == [f"rdma_en{1 - index}"]
                assert report.state == peer_pb2.WORKER_STATE_READY
                assert report.transport_failure == ""
            tokens = await generated(starts, workers[0], 12)
    finally:
        for each in workers:
            await each.stop(5)
    async with asyncio.timeout(DEADLINE_SECONDS):
        alone = await run_pipeline(plan(folder, 1), PROMPT, 12)
    assert tuple(tokens) == alone.token_ids
    assert len(tokens) == 12


@pytest.mark.process
async def test_ranks_that_share_every_layer_sum_over_jaccl(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "llama", dtype=mx.float32)
    model, _ = load_model(folder)
    steps = generate_step(mx.array(PROMPT), model, max_tokens=12, prefill_step_size=8)
    alone = [int(token) for token, _ in steps]
    starts = plan(folder, 2)
    for start in starts:
        start.deployment.parallelism = "tensor"
        for stage in start.deployment.stages:
            stage.first_layer, stage.end_layer = 0, 4
    workers = [worker() for _ in starts]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for report in await joined(starts, workers):
                assert report.state == peer_pb2.WORKER_STATE_READY, report.error
                assert [link.provider for link in report.links] == ["jaccl"]
            assert await generated(starts, workers[0], 12) == alone
    finally:
        for each in workers:
            await each.stop(5)


@pytest.mark.process
async def test_a_wait_that_does_not_end_is_the_transports_fault(folder: Path) -> None:
    starts = plan(folder, 2)
    starts[1].step_deadline_seconds = 1.5
    workers = [worker("drop 0") for _ in starts]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await joined(starts, workers)
            await submit(starts, workers[0], 1)
            report = await reached(workers[1], peer_pb2.WORKER_STATE_FAILED)
    finally:
        for each in workers:
            await each.stop(5)
    assert report.transport_failure == report.error
    assert "jaccl: receiving (1, 8, " in report.error
    assert "took longer than 1.5 s" in report.error
    assert not report.peer_lost


@pytest.mark.process
@pytest.mark.parametrize(
    ("fault", "deadline_seconds", "told"),
    [("refuse", 60, "protection domain"), ("wedge 1", 1.0, "rank 1 sent nothing")],
)
async def test_a_set_up_that_fails_is_told_as_the_transports(
    folder: Path, fault: str, deadline_seconds: float, told: str
) -> None:
    starts = plan(folder, 2)
    workers = [worker(fault, deadline_seconds) for _ in starts]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            reports = await joined(starts, workers)
    finally:
        for each in workers:
            await each.stop(5)
    assert {report.state for report in reports} == {peer_pb2.WORKER_STATE_FAILED}
    assert any(told in report.transport_failure for report in reports), reports


def test_a_matrix_of_another_size_is_refused(tmp_path: Path) -> None:
    start = plan(tmp_path, 2)[0]
    check_start(start)
    del start.deployment.device_matrix.rows[1]
    with pytest.raises(LocalStartError, match="not one of 2 stages"):
        check_start(start)
