"""Workers of a plan on this machine, driven as a daemon does it but without cluster and gRPC, for the scripts here."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.models.folder import read_folder
from macmesh_daemon.models.profiler import profile_model
from macmesh_daemon.supervisor.interface import Worker
from macmesh_daemon.supervisor.local_plan import even_cuts, local_plan
from macmesh_daemon.supervisor.process import WorkerProcess
from macmesh_daemon.supervisor.verify import running_plan
from macmesh_placement import (
    ModelProfile,
    Reserves,
    StageDemand,
    cache_budget_bytes,
    stage_cache_cost,
    stage_ledger,
)

#: Phases of a worker that are this machine's work for a step, and no waiting.
HOST_PHASES = ("describe", "encode", "sample", "send", "operations", "schedule")


async def planned(
    folder: Path,
    stages: int,
    *,
    context_tokens: int,
    slots: int,
    chunk_tokens: int,
    step_deadline_seconds: float,
    transfers: str = "",
) -> list[lane_pb2.StartStage]:
    """The start of every worker of an even plan, with the ledgers and budgets that a cluster would give the stages."""
    profile = await profile_model(read_folder(folder), folder / "profiles", deadline_seconds=300)
    starts = local_plan(
        [folder] * stages,
        even_cuts(profile.layer_count, stages),
        layer_count=profile.layer_count,
        context_tokens=context_tokens,
        slots=slots,
        prefill_chunk_tokens=chunk_tokens,
        step_deadline_seconds=step_deadline_seconds,
        transfers=transfers,
    )
    for start in starts:
        for stage in start.deployment.stages:
            _charge(stage, profile, start.deployment)
    return starts


def _charge(stage: types_pb2.Stage, profile: ModelProfile, deployment: types_pb2.Deployment) -> None:
    demand = StageDemand(
        context_tokens=deployment.context_tokens,
        slots=deployment.slots,
        prefill_chunk_tokens=deployment.prefill_chunk_tokens,
        reserves=Reserves(),
    )
    ledger = stage_ledger(
        profile,
        demand,
        first_layer=stage.first_layer,
        end_layer=stage.end_layer,
        usable_bytes=psutil.virtual_memory().total,
        fused_attention=False,
    )
    for entry in ledger.entries:
        stage.ledger.entries.add(name=entry.name, size_bytes=entry.size_bytes, source=entry.source)
    stage.ledger.usable_bytes, stage.ledger.headroom_bytes = ledger.usable_bytes, ledger.headroom_bytes
    cost = stage_cache_cost(profile, stage.first_layer, stage.end_layer)
    stage.cache_cost_json = cost.to_json_text()
    stage.cache_budget_bytes = cache_budget_bytes(
        cost,
        context_tokens=deployment.context_tokens,
        slots=deployment.slots,
        prefill_chunk_tokens=deployment.prefill_chunk_tokens,
    )


class Request:
    """One request: when each of its tokens came."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.stamps: list[float] = []
        self.token_ids: list[int] = []
        self.ended = asyncio.Event()

    @property
    def first_token_seconds(self) -> float:
        """From its call to its first token."""
        return self.stamps[0] - self.began

    @property
    def tokens_per_second(self) -> float:
        """After the first token; 0 where there is no second one."""
        return (len(self.stamps) - 1) / (self.stamps[-1] - self.stamps[0]) if len(self.stamps) > 1 else 0.0


class Plan:
    """Workers at work. Use `running`."""

    def __init__(self, workers: Sequence[Worker], starts: Sequence[lane_pb2.StartStage]) -> None:
        self._workers = workers
        self._stages = starts[0].deployment.stages
        self._epoch = starts[0].epoch
        self._requests: dict[str, Request] = {}
        self._progressed = asyncio.Condition()
        self._pongs: list[asyncio.Queue[lane_pb2.PongWorker]] = [asyncio.Queue() for _ in workers]

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, starts: Sequence[lane_pb2.StartStage], environment: Callable[[int], dict[str, str]]
    ) -> AsyncIterator["Plan"]:
        """The workers, ready; stopped on the way out. Stage k has the environment of k."""
        numbers = iter(range(len(starts)))
        async with running_plan(
            starts, lambda: WorkerProcess(environment=environment(next(numbers)))
        ) as workers:
            plan = cls(workers, starts)
            async with asyncio.TaskGroup() as group:
                listeners = [
                    group.create_task(plan._listen(index), name=f"stage {index}")
                    for index in range(len(workers))
                ]
                try:
                    yield plan
                finally:
                    for listener in listeners:
                        listener.cancel()

    async def _listen(self, index: int) -> None:
        async for event in self._workers[index].events():
            match event.WhichOneof("event"):
                case "progress":
                    request = self._requests[event.progress.request_id]
                    response = event.progress.response
                    if response.has_token:
                        request.stamps.append(time.perf_counter())
                        request.token_ids.append(response.token_id)
                    if response.finish_reason != inference_pb2.FINISH_REASON_UNSPECIFIED:
                        request.ended.set()
                    async with self._progressed:
                        self._progressed.notify_all()
                case "failed":
                    raise SystemExit(f"{event.failed.reason}: {event.failed.message}")
                case "report" if event.report.error:
                    raise SystemExit(f"stage {index}: {event.report.error}")
                case "pong":
                    self._pongs[index].put_nowait(event.pong)

    async def submit(self, name: str, prompt: Sequence[int], tokens: int) -> Request:
        """Begins a request."""
        request = self._requests[name] = Request()
        message = peer_pb2.RunRequestRequest(
            epoch=self._epoch, request_id=name, prompt_token_ids=prompt, max_tokens=tokens
        )
        await self._workers[0].send(lane_pb2.WorkerCommand(submit=lane_pb2.SubmitRequest(request=message)))
        return request

    async def run(self, name: str, prompt: Sequence[int], tokens: int) -> Request:
        """One request to its end."""
        request = await self.submit(name, prompt, tokens)
        await request.ended.wait()
        return request

    async def cancel(self, name: str) -> None:
        """Ends a request early."""
        await self._workers[0].send(lane_pb2.WorkerCommand(cancel=lane_pb2.CancelRequest(request_id=name)))
        await self._requests[name].ended.wait()

    async def reach(self, request: Request, tokens: int) -> None:
        """Returns once the request has so many tokens."""
        async with self._progressed:
            await self._progressed.wait_for(lambda: len(request.stamps) >= tokens)

    async def pongs(self) -> list[lane_pb2.PongWorker]:
        """What every stage tells of its memory and its time now."""
        found = []
        for index, worker in enumerate(self._workers):
            while not self._pongs[index].empty():
                self._pongs[index].get_nowait()
            await worker.ping(1 << 40)
            while (answer := await self._pongs[index].get()).nonce != 1 << 40:
                pass
            found.append(answer)
        return found

    async def memory(self) -> list[dict[str, Any]]:
        """Each worker's peak since its start beside its ledger."""
        return [
            memory_of(stage, pong.peak_memory_bytes)
            for stage, pong in zip(self._stages, await self.pongs(), strict=True)
        ]


def memory_of(stage: types_pb2.Stage, peak_bytes: int) -> dict[str, Any]:
    """A worker's peak beside its ledger."""
    ledger_bytes = sum(entry.size_bytes for entry in stage.ledger.entries)
    return {
        "stage": stage.index,
        "layers": stage.end_layer - stage.first_layer,
        "peak_memory_bytes": peak_bytes,
        "ledger_bytes": ledger_bytes,
        "within": peak_bytes <= ledger_bytes,
    }


def split_ms(
    before: Sequence[lane_pb2.PongWorker], after: Sequence[lane_pb2.PongWorker]
) -> list[dict[str, float]]:
    """Milliseconds per step that each stage spent in each phase, between two answers; `host` is their host work."""
    stages = []
    for old, new in zip(before, after, strict=True):
        steps = max(1, new.steps - old.steps)
        phases: dict[str, float] = {}
        for field in lane_pb2.StepTimes.DESCRIPTOR.fields:
            value, earlier = getattr(new.times, field.name), getattr(old.times, field.name)
            if isinstance(value, lane_pb2.PhaseTime):
                phases[field.name] = round(1000 * (value.seconds - earlier.seconds) / steps, 4)
        stages.append({**phases, "host": round(sum(phases[name] for name in HOST_PHASES), 4)})
    return stages


def random_prompt(tokens: int, vocabulary: int, *names: object) -> list[int]:
    """Token ids, the same for the same names."""
    drawn = random.Random("/".join(map(str, names)))  # noqa: S311  tokens, no secrets
    return [drawn.randrange(vocabulary) for _ in range(tokens)]
