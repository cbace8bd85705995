"""The contract of `TensorLane`, in memory, over our own links and over jaccl, MLX's ring in place of its backend."""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lane_contract import ROLES, SHAPES
from macmesh_rdma.testing.memory_lane import memory_lanes

ROLE_MAIN = Path(__file__).parent / "lane_role_main.py"
Play = Callable[[list[str]], list[list[str]]]


def play_in_memory(roles: list[str]) -> list[list[str]]:
    lanes = memory_lanes(len(roles))
    told: list[list[str]] = [[] for _ in roles]

    def run(index: int) -> None:
        told[index] = ROLES[roles[index]](lanes[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(roles))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return told


def start_stages(
    roles: list[str], transport: str = "ring", wait_seconds: float = 60
) -> list[subprocess.Popen[str]]:
    """Stages that join within 60 s; how long the role ``wait`` then waits is told."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    stages = [
        subprocess.Popen(
            [sys.executable, str(ROLE_MAIN), str(index), role, transport, "60", str(wait_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for index, role in enumerate(roles)
    ]
    addresses = [stage.stdout.readline().strip() for stage in stages if stage.stdout]
    for stage in stages:
        assert stage.stdin
        stage.stdin.write(json.dumps(addresses) + "\n")
        stage.stdin.flush()
    return stages


def end_stages(stages: list[subprocess.Popen[str]]) -> None:
    for stage in stages:
        stage.kill()
        stage.communicate()


def play_over(transport: str, roles: list[str]) -> list[list[str]]:
    stages = start_stages(roles, transport)
    try:
        return [json.loads(stage.stdout.readline() or "[]") for stage in stages if stage.stdout]
    finally:
        end_stages(stages)


@pytest.fixture(
    params=["memory", *(pytest.param(t, marks=pytest.mark.process) for t in ("shm", "tcp", "jaccl"))]
)
def play(request: pytest.FixtureRequest) -> Play:
    transport: str = request.param
    return play_in_memory if transport == "memory" else functools.partial(play_over, transport)


def test_arrays_arrive_unchanged_and_in_order_through_three_stages(play: Play) -> None:
    assert play(["send_all", "pass_on", "receive_all"]) == [["sent"], ["passed"], ["same"] * len(SHAPES)]


def test_head_and_tail_have_one_end_only_and_a_closed_lane_refuses(play: Play) -> None:
    assert play(["misuse_head", "misuse_tail"]) == [["LocalLaneStateError"] * 3, ["LocalLaneStateError"]]


def test_lost_neighbour_is_an_error_and_breaks_the_lane(play: Play) -> None:
    assert play(["leave", "be_left"]) == [["left"], ["same", "lost", "broken"]]


@pytest.mark.process
def test_wait_for_a_silent_neighbour_ends_the_process_at_its_deadline() -> None:
    stages = start_stages(["hang", "wait"], wait_seconds=0.5)
    try:
        assert stages[1].stdout
        kind, what = json.loads(stages[1].stdout.readline())
        assert kind == "stalled"
        assert "receiving (1,)" in what
        assert stages[1].wait(60) == 7
    finally:
        end_stages(stages)


@pytest.mark.process
def test_neighbour_that_never_comes_ends_the_process_at_the_deadline() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(ROLE_MAIN), "0", "send_all", "ring", "0.5", "20"],
        input=json.dumps(["127.0.0.1:9", "127.0.0.1:9"]) + "\n",
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "Timeout" in done.stderr
