"""Stages of a tiny model as threads of one process, joined by lanes in memory."""

import threading
from pathlib import Path

import mlx.core as mx
import pytest

from macmesh.v1 import lane_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.stage import load_stage
from macmesh_daemon.worker.runner import StageRunner
from macmesh_rdma.testing.memory_lane import MemoryLane, memory_lanes
from tinymodels import write_tiny_model

LAYERS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


def runner_for(
    folder: Path, first: int, end: int, lane: MemoryLane | None, headers: list[lane_pb2.StepHeader]
) -> StageRunner:
    return StageRunner(
        load_stage(folder, first, end, LAYERS),
        lane,
        slots=2,
        send_header=headers.append,
        step_deadline_seconds=10,
    )


def step(number: int, offset: int, count: int, *, slot: int = 0, sample: bool = False) -> lane_pb2.StepHeader:
    return lane_pb2.StepHeader(
        step=number,
        request_id=f"r{slot}",
        slot=slot,
        first=offset == 0,
        reserve_tokens=40,
        offset=offset,
        token_count=count,
        sample=sample,
    )


def test_two_stages_hand_on_and_sample_what_one_stage_samples(folder: Path) -> None:
    steps = [
        (step(1, 0, 5), tuple(range(5))),
        (step(2, 0, 1, slot=1, sample=True), (9,)),
        (step(3, 5, 1, sample=True), (5,)),
    ]
    whole = runner_for(folder, 0, LAYERS, None, [])
    expected = [whole.run(header, tokens) for header, tokens in steps]
    assert [result.has_token for result in expected] == [False, True, True]
    assert all(result.logprob < 0 for result in expected if result.has_token)

    head_lane, tail_lane = memory_lanes(2)
    headers: list[lane_pb2.StepHeader] = []
    results: list[lane_pb2.StepResult] = []

    def run_tail() -> None:
        tail = runner_for(folder, 2, LAYERS, tail_lane, [])
        for _ in steps:
            wait.acquire()
            results.append(tail.run(headers[len(results)]))

    wait = threading.Semaphore(0)
    thread = threading.Thread(target=run_tail)
    thread.start()
    head = runner_for(folder, 0, 2, head_lane, headers)
    for header, tokens in steps:
        head.run(header, tokens)
        wait.release()
    thread.join(30)
    assert results == expected
    assert [tuple(header.shape) for header in headers] == [(1, 5, 64), (1, 1, 64), (1, 1, 64)]
    assert {header.dtype for header in headers} == {"bfloat16"}
    assert head_lane.sent_bytes == 7 * 64 * 2


def test_steps_that_do_not_fit_are_refused(folder: Path) -> None:
    runner = runner_for(folder, 0, LAYERS, None, [])
    with pytest.raises(RemoteScheduleError, match="step 2 came after step 0"):
        runner.run(step(2, 0, 1), (1,))
    runner.run(step(1, 0, 3), (1, 2, 3))
    with pytest.raises(RemoteScheduleError, match="not free"):
        runner.run(step(2, 0, 1), (1,))
    with pytest.raises(RemoteScheduleError, match="is at token 3 of r0"):
        runner.run(step(3, 7, 1), (1,))
    with pytest.raises(RemoteScheduleError, match="is empty"):
        runner.run(step(4, 3, 1, slot=1), (1,))
    with pytest.raises(RemoteScheduleError, match="not free"):
        runner.run(step(5, 0, 1, slot=2), (1,))
    runner.release(0, "somebody else")
    with pytest.raises(RemoteScheduleError, match="not free"):
        runner.run(step(6, 0, 1), (1,))
    runner.release(0, "r0")
    runner.release(0, "r0")
    assert runner.run(step(7, 0, 1, sample=True), (1,)).has_token


def test_released_caches_give_their_memory_back(folder: Path) -> None:
    runner = runner_for(folder, 0, LAYERS, None, [])
    mx.clear_cache()
    before, _ = runner.memory_bytes()
    runner.run(step(1, 0, 3), (1, 2, 3))
    during, peak = runner.memory_bytes()
    runner.release(0, "r0")
    after, _ = runner.memory_bytes()
    assert during - before >= 4 * 2 * 2 * 16 * 256 * 2
    assert peak >= during
    assert after <= before + 4096


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("int4", (1, 1, 64)), ("bfloat16", (1, 2, 64)), ("bfloat16", (1,))],
)
def test_activations_that_cannot_be_are_refused(folder: Path, dtype: str, shape: tuple[int, ...]) -> None:
    _, lane = memory_lanes(2)
    runner = runner_for(folder, 2, LAYERS, lane, [])
    header = step(1, 0, 1)
    header.dtype = dtype
    header.shape.extend(shape)
    with pytest.raises(RemoteScheduleError, match="announces"):
        runner.run(header)
