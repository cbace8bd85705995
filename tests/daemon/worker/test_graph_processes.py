"""Workers as processes whose decode steps go to the next stage inside their graphs."""

import asyncio
import functools
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.supervisor.interface import Worker
from macmesh_daemon.supervisor.local_plan import local_plan
from macmesh_daemon.supervisor.verify import running_plan
from tinymodels import write_tiny_model

pytestmark = pytest.mark.process

LAYERS, CHUNK, SECONDS = 4, 8, 120.0
STEP_DEADLINE_SECONDS = 60.0
PROMPT = [(5 * i * i + 11) % 300 + 4 for i in range(40)]


@functools.cache
def expected(folder: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    model, _ = load_model(folder)
    steps = generate_step(mx.array(prompt), model, max_tokens=count, prefill_step_size=CHUNK)
    return [int(token) for token, _ in steps]


def plan(folder: Path, cuts: list[int]) -> list[lane_pb2.StartStage]:
    return local_plan(
        [folder] * (len(cuts) + 1),
        cuts,
        layer_count=LAYERS,
        context_tokens=600,
        slots=3,
        prefill_chunk_tokens=CHUNK,
        transfers="graph",
        step_deadline_seconds=STEP_DEADLINE_SECONDS,
    )


def request(
    starts: list[lane_pb2.StartStage], name: str, prompt: list[int], count: int, seed: int | None = None
) -> peer_pb2.RunRequestRequest:
    sampling = inference_pb2.SamplingParameters()
    if seed is not None:
        sampling = inference_pb2.SamplingParameters(temperature=1.0, top_p=0.95, seed=seed)
    return peer_pb2.RunRequestRequest(
        epoch=starts[0].epoch,
        request_id=name,
        prompt_token_ids=prompt,
        max_tokens=count,
        sampling=sampling,
    )


async def told(head: Worker) -> AsyncIterator[tuple[str, int | None, bool]]:
    """Request, token, and whether that was its last."""
    async for event in head.events():
        match event.WhichOneof("event"):
            case "progress":
                response = event.progress.response
                token = response.token_id if response.has_token else None
                yield event.progress.request_id, token, bool(response.finish_reason)
            case "failed":
                raise AssertionError(event.failed)
            case "report" if event.report.state == peer_pb2.WORKER_STATE_FAILED:
                raise AssertionError(event.report.error)


async def generate(
    head: Worker,
    starts: list[lane_pb2.StartStage],
    asked: dict[str, tuple[list[int], int, int | None]],
    first: int,
) -> dict[str, list[int]]:
    """All requests' tokens; so many at once, the others once the first have tokens."""
    tokens: dict[str, list[int]] = {name: [] for name in asked}
    waiting = list(asked)

    async def submit(count: int) -> None:
        for name in waiting[:count]:
            prompt, most, seed = asked[name]
            await head.submit(request(starts, name, prompt, most, seed))
        del waiting[:count]

    await submit(first)
    ended = 0
    async for name, token, last in told(head):
        if token is not None:
            tokens[name].append(token)
        if waiting and len(tokens[name]) == 4:
            await submit(len(waiting))
        ended += last
        if ended == len(asked):
            break
    return tokens


ASKED: dict[str, tuple[list[int], int, int | None]] = {
    "long": (PROMPT[:23], 14, None),
    "short": (PROMPT[5:10], 20, None),
    "sampled": (PROMPT[:9], 8, 4),
    "joins": (PROMPT[1:30], 7, None),
    "joins too": (PROMPT[2:5], 6, None),
}


@pytest.mark.parametrize(("model", "cuts"), [("llama", [2]), ("rwkv7", [1, 3])])
async def test_tokens_are_those_of_mlx_lm_alone_and_a_killed_stage_ends_the_others(
    tmp_path: Path, model: str, cuts: list[int]
) -> None:
    folder = write_tiny_model(tmp_path, model)
    starts = plan(folder, cuts)
    async with asyncio.timeout(SECONDS), running_plan(starts) as workers:
        came = await generate(workers[0], starts, ASKED, 3)
        for name, (prompt, count, seed) in ASKED.items():
            assert len(came[name]) == count
            if seed is None:
                assert came[name] == expected(folder, tuple(prompt), count), name
        await workers[0].submit(request(starts, "endless", PROMPT[:9], 500))
        count, killed = 0, 0.0
        async for event in workers[0].events():
            count += event.progress.response.has_token
            if count == 5 and not killed:
                assert workers[-1].pid is not None
                os.kill(workers[-1].pid, signal.SIGKILL)
                killed = time.monotonic()
            if event.report.state == peer_pb2.WORKER_STATE_FAILED:
                assert event.report.peer_lost
                break
        assert time.monotonic() - killed < STEP_DEADLINE_SECONDS / 2, "by its end, not by the deadline"
