"""Tensor-parallel plans in real worker processes, through the worker's own start."""

import asyncio
import collections
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.supervisor.interface import Worker
from macmesh_daemon.supervisor.local_plan import local_plan
from macmesh_daemon.supervisor.verify import running_plan
from macmesh_placement import CachePiece, StageCacheCost, cache_budget_bytes
from tinymodels import write_tiny_model

pytestmark = pytest.mark.process

LAYERS = 4
PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(20)]
DEADLINE_SECONDS = 120.0
STEP_DEADLINE_SECONDS = 60.0
NOTICED_WITHIN_SECONDS = 30.0
"""By its end, not by the deadline."""
COMPARED = 12


def plan(folder: Path, ways: int, *, kv_bits: int = 0) -> list[lane_pb2.StartStage]:
    starts = local_plan(
        [folder] * ways,
        [],
        layer_count=LAYERS,
        context_tokens=2000,
        slots=3,
        prefill_chunk_tokens=8,
        kv_bits=kv_bits,
        step_deadline_seconds=STEP_DEADLINE_SECONDS,
        tensor_parallel=ways > 1,
    )
    # Caches of the size that each rank has of the tiny models, so that the schedule counts for every rank.
    piece = CachePiece(kind="growing", source="KVCache", bytes_per_token=1024 // ways)
    cost = StageCacheCost(((piece, LAYERS),))
    budget = cache_budget_bytes(cost, context_tokens=2000, slots=3, prefill_chunk_tokens=8)
    for start in starts:
        for stage in start.deployment.stages:
            stage.cache_cost_json, stage.cache_budget_bytes = cost.to_json_text(), budget
    return starts


def request(
    start: lane_pb2.StartStage, name: str, prompt: Sequence[int], max_tokens: int, seed: int | None = None
) -> peer_pb2.RunRequestRequest:
    sampling = inference_pb2.SamplingParameters()
    if seed is not None:
        sampling = inference_pb2.SamplingParameters(temperature=1.0, seed=seed, repetition_penalty=1.1)
    return peer_pb2.RunRequestRequest(
        epoch=start.epoch,
        request_id=name,
        prompt_token_ids=prompt,
        max_tokens=max_tokens,
        sampling=sampling,
    )


class Talk:
    """What the head tells."""

    def __init__(self, worker: Worker) -> None:
        self.events = worker.events()
        self.tokens: dict[str, list[int]] = collections.defaultdict(list)
        self.ends: dict[str, str] = {}
        self.rows = 0
        """Requests that ran while one batch was there."""
        self.hits = 0
        self.budgets: list[int] = []
        self.final: peer_pb2.WorkerReport | None = None

    async def until(
        self, *, tokens: tuple[str, int] | None = None, ends: int = -1, pong: bool = False
    ) -> None:
        if tokens is not None and len(self.tokens[tokens[0]]) >= tokens[1]:
            return
        async for event in self.events:
            kind = self.take(event)
            enough = tokens is not None and len(self.tokens[tokens[0]]) >= tokens[1]
            if enough or len(self.ends) == ends or self.final is not None or (pong and kind == "pong"):
                return

    def take(self, event: lane_pb2.WorkerEvent) -> str | None:
        kind = event.WhichOneof("event")
        match kind:
            case "progress":
                name, response = event.progress.request_id, event.progress.response
                if response.has_token:
                    self.tokens[name].append(response.token_id)
                if response.finish_reason:
                    self.ends[name] = inference_pb2.FinishReason.Name(response.finish_reason)
            case "failed":
                self.ends[event.failed.request_id] = event.failed.reason
            case "pong":
                self.hits = event.pong.scheduler.prefix_hits
                self.budgets = list(event.pong.scheduler.cache_budget_bytes)
                if event.pong.scheduler.batches == 1:
                    self.rows = event.pong.scheduler.running
            case "report" if event.report.state == peer_pb2.WORKER_STATE_FAILED:
                self.final = event.report
        return kind


async def generate(starts: Sequence[lane_pb2.StartStage], *, kill: bool = False) -> dict[str, list[int]]:
    """Three requests as rows of a batch, of which two sample; then one that goes on where another ended."""
    async with running_plan(starts) as workers:
        head, talk = workers[0], Talk(workers[0])
        for name, seed in (("greedy", None), ("seed-1", 1), ("seed-2", 2)):
            await head.submit(request(starts[0], name, PROMPT, 600, seed))
        await talk.until(tokens=("seed-2", COMPARED))
        while talk.rows < 3:
            await head.send(lane_pb2.WorkerCommand(ping=lane_pb2.PingWorker(nonce=1)))
            await talk.until(pong=True)
        for name in ("greedy", "seed-1", "seed-2"):
            await talk.until(tokens=(name, COMPARED))
            await head.cancel(name)
        await talk.until(ends=3)
        await head.submit(request(starts[0], "first", PROMPT, COMPARED))
        await talk.until(ends=4)
        again = [*PROMPT, *talk.tokens["first"][:5]]
        await head.submit(request(starts[0], "again", again, COMPARED - 5))
        await talk.until(ends=5)
        await head.send(lane_pb2.WorkerCommand(ping=lane_pb2.PingWorker(nonce=2)))
        await talk.until(pong=True)
        assert talk.hits >= 1
        assert talk.budgets == [start.deployment.stages[0].cache_budget_bytes for start in starts]
        assert talk.tokens["again"] == talk.tokens["first"][5:]
        assert talk.tokens["greedy"][:COMPARED] == talk.tokens["first"]
        told = {name: tokens[:COMPARED] for name, tokens in talk.tokens.items()}
        if kill:
            await killed(starts, workers, talk)
        return told


async def killed(starts: Sequence[lane_pb2.StartStage], workers: Sequence[Worker], talk: Talk) -> None:
    """A rank dies while a request runs: the head fails in time, and says whom it lost."""
    await workers[0].submit(request(starts[0], "cut short", PROMPT, 1900))
    await talk.until(tokens=("cut short", 3))
    assert workers[1].pid is not None
    os.kill(workers[1].pid, signal.SIGKILL)
    async with asyncio.timeout(NOTICED_WITHIN_SECONDS):
        await talk.until(ends=6)
        await talk.until()
    assert talk.final is not None
    assert talk.final.peer_lost
    assert "1" in talk.final.error
    assert talk.ends["cut short"] == "WORKER_FAILED"


async def simply(starts: Sequence[lane_pb2.StartStage]) -> dict[str, list[int]]:
    """Two requests, of which one samples."""
    async with running_plan(starts) as workers:
        talk = Talk(workers[0])
        for name, seed in (("greedy", None), ("seed-1", 1)):
            await workers[0].submit(request(starts[0], name, PROMPT, COMPARED, seed))
        await talk.until(ends=2)
        assert set(talk.ends.values()) == {"FINISH_REASON_LENGTH"}, talk.final
        return dict(talk.tokens)


async def test_two_ranks_of_minimax_with_quantised_caches_give_the_tokens_of_one_process(
    tmp_path: Path,
) -> None:
    folder = write_tiny_model(tmp_path, "minimax", dtype=mx.float32, head_dim=64)
    async with asyncio.timeout(DEADLINE_SECONDS):
        alone = await simply(plan(folder, 1, kv_bits=8))
        together = await simply(plan(folder, 2, kv_bits=8))
    assert together == alone
    assert [len(tokens) for tokens in alone.values()] == [COMPARED] * 2


async def test_two_ranks_of_llama_give_the_tokens_of_one_process_and_one_dies(tmp_path: Path) -> None:
    # In bfloat16 each rank's part is rounded before the sum, so that near ties may fall otherwise.
    folder = write_tiny_model(tmp_path, "llama", dtype=mx.float32)
    async with asyncio.timeout(DEADLINE_SECONDS):
        alone = await generate(plan(folder, 1))
        together = await generate(plan(folder, 2), kill=True)
    assert together == alone
    assert {name: len(tokens) for name, tokens in alone.items()} == {
        **dict.fromkeys(("greedy", "seed-1", "seed-2", "first"), COMPARED),
        "again": COMPARED - 5,
    }
    assert len({tuple(alone[name]) for name in ("greedy", "seed-1", "seed-2")}) == 3
