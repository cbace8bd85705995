"""Does a pipeline give the tokens that mlx-lm gives in one process?

Both sides run in processes of their own; nothing here imports mlx. The reference is mlx-lm as it is
installed, called by `macmesh_daemon.engine.reference`, which has no code of the engine.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.supervisor.errors import LocalVerifyError
from macmesh_daemon.supervisor.interface import FINAL_STATES, Worker, WorkerFactory
from macmesh_daemon.supervisor.local_plan import count_layers, even_cuts, local_plan, peers_of
from macmesh_daemon.supervisor.process import WorkerProcess

REFERENCE_COMMAND = (sys.executable, "-m", "macmesh_daemon.engine.reference")
STOP_DEADLINE_SECONDS = 10.0
DEFAULT_CHUNK_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Generation:
    """Tokens and the time that they took."""

    token_ids: tuple[int, ...]
    load_seconds: float
    """From nothing to ready to generate, imports included."""
    first_token_seconds: float
    """From the request to its first token."""
    decode_seconds: float
    """From the first token to the last."""

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed after the first token; 0 where there is no second one."""
        return (len(self.token_ids) - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What came out of a comparison."""

    identical: bool
    first_difference: int | None
    """Position of the first token that differs; None where none does."""
    stage_layers: tuple[tuple[int, int], ...]
    """First layer and end of every stage, head first."""
    pipeline: Generation
    reference: Generation

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "identical": self.identical,
            "first_difference": self.first_difference,
            "stages": [list(layers) for layers in self.stage_layers],
            "tokens": len(self.pipeline.token_ids),
            "pipeline": _generation_json(self.pipeline),
            "reference": _generation_json(self.reference),
        }


def first_difference(tokens: Sequence[int], reference: Sequence[int]) -> int | None:
    """Position of the first token that differs, also where one side has ended; None where both are equal."""
    for position, (ours, theirs) in enumerate(zip(tokens, reference, strict=False)):
        if ours != theirs:
            return position
    return None if len(tokens) == len(reference) else min(len(tokens), len(reference))


async def verify(
    model_path: Path,
    prompt_tokens: Sequence[int],
    max_tokens: int,
    *,
    stages: int = 2,
    cuts: Sequence[int] | None = None,
    prefill_chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    kv_bits: int = 0,
    transfers: str = "",
    deadline_seconds: float = 600.0,
    stage_model_paths: Sequence[Path] | None = None,
    worker_factory: WorkerFactory = WorkerProcess,
) -> VerifyReport:
    """Generates greedily through workers on this machine and through mlx-lm alone, and compares the tokens.

    Runs one after the other, so that both have the machine for themselves.

    Args:
        model_path: folder of the model.
        prompt_tokens: the prompt, tokenised.
        max_tokens: tokens to generate, 1 or more; end-of-sequence tokens end nothing.
        stages: workers to start; ignored where cuts are given.
        cuts: first layers of all stages but the head; None cuts evenly.
        prefill_chunk_tokens: most prompt tokens in one step, on both sides.
        kv_bits: bits of the caches, quantised from the first token on, on both sides; 0 keeps the model's own type.
        transfers: how decode steps go from stage to stage; empty: what the stages choose.
        deadline_seconds: for each side.
        stage_model_paths: folder for each stage, where they are not all the same.
        worker_factory: makes the workers.

    Raises:
        LocalVerifyError: one of the sides could not be run; the message has the reason that it gave.
    """
    layer_count = await asyncio.to_thread(count_layers, model_path)
    cuts = even_cuts(layer_count, stages) if cuts is None else list(cuts)
    bounds = [0, *cuts, layer_count]
    paths = list(stage_model_paths) if stage_model_paths is not None else [model_path] * (len(cuts) + 1)
    starts = local_plan(
        paths,
        cuts,
        layer_count=layer_count,
        context_tokens=len(prompt_tokens) + max_tokens,
        prefill_chunk_tokens=prefill_chunk_tokens,
        kv_bits=kv_bits,
        transfers=transfers,
    )
    try:
        async with asyncio.timeout(deadline_seconds):
            pipeline = await run_pipeline(starts, prompt_tokens, max_tokens, worker_factory)
    except TimeoutError as error:
        raise LocalVerifyError(f"the pipeline was not done within {deadline_seconds:g} s") from error
    reference = await run_reference(
        model_path,
        prompt_tokens,
        max_tokens,
        prefill_chunk_tokens=prefill_chunk_tokens,
        kv_bits=kv_bits,
        deadline_seconds=deadline_seconds,
    )
    difference = first_difference(pipeline.token_ids, reference.token_ids)
    return VerifyReport(
        identical=difference is None,
        first_difference=difference,
        stage_layers=tuple(itertools.pairwise(bounds)),
        pipeline=pipeline,
        reference=reference,
    )


async def run_reference(
    model_path: Path,
    prompt_tokens: Sequence[int],
    max_tokens: int,
    *,
    prefill_chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    kv_bits: int = 0,
    deadline_seconds: float = 600.0,
) -> Generation:
    """Generates greedily with unmodified mlx-lm in a process of its own.

    Raises:
        LocalVerifyError: the process failed or did not end in time.
    """
    job = {
        "prompt": list(prompt_tokens),
        "max_tokens": max_tokens,
        "prefill_step_size": prefill_chunk_tokens,
        "kv_bits": kv_bits,
    }
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *REFERENCE_COMMAND,
        str(model_path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(deadline_seconds):
            out, err = await process.communicate(json.dumps(job).encode())
    except TimeoutError as error:
        raise LocalVerifyError(f"mlx-lm was not done within {deadline_seconds:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        tail = err.decode(errors="replace").strip().splitlines()[-1:]
        raise LocalVerifyError(f"mlx-lm failed (exit code {process.returncode}): {''.join(tail)}")
    told = json.loads(out)
    first_token, decode = told["first_token_seconds"], told["decode_seconds"]
    load = time.monotonic() - began - first_token - decode
    return Generation(tuple(told["token_ids"]), load, first_token, decode)


async def run_pipeline(
    starts: Sequence[lane_pb2.StartStage],
    prompt_tokens: Sequence[int],
    max_tokens: int,
    worker_factory: WorkerFactory = WorkerProcess,
) -> Generation:
    """Starts the workers of a local plan, generates greedily and stops them. Set a deadline around it.

    Raises:
        LocalVerifyError: a worker failed.
    """
    began = time.monotonic()
    async with running_plan(starts, worker_factory) as workers:
        ready = time.monotonic()
        request = peer_pb2.RunRequestRequest(
            epoch=starts[0].epoch,
            request_id="verify",
            prompt_token_ids=prompt_tokens,
            max_tokens=max_tokens,
        )
        await workers[0].submit(request)
        tokens: list[int] = []
        first = last = ready
        async for event in workers[0].events():
            match event.WhichOneof("event"):
                case "progress":
                    last = time.monotonic()
                    first = first if tokens else last
                    response = event.progress.response
                    tokens.append(response.token_id)
                    if response.finish_reason != inference_pb2.FINISH_REASON_UNSPECIFIED:
                        break
                case "failed":
                    raise LocalVerifyError(f"{event.failed.reason}: {event.failed.message}")
                case "report":
                    _require_alive(event.report)
    return Generation(tuple(tokens), ready - began, first - ready, last - first)


@contextlib.asynccontextmanager
async def running_plan(
    starts: Sequence[lane_pb2.StartStage], worker_factory: WorkerFactory = WorkerProcess
) -> AsyncIterator[list[Worker]]:
    """The workers of a local plan, all of them ready; stopped on the way out.

    Raises:
        LocalVerifyError: a worker failed before all were ready.
    """
    workers = [worker_factory() for _ in starts]
    try:
        for worker, start in zip(workers, starts, strict=True):
            await worker.start(start)
        reports = [await _until(worker, peer_pb2.WORKER_STATE_LOADED) for worker in workers]
        peers = peers_of(starts, reports)
        for worker in workers:
            await worker.set_peers(peers)
        for worker in workers:
            await _until(worker, peer_pb2.WORKER_STATE_READY)
        yield workers
    finally:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.stop(STOP_DEADLINE_SECONDS), name="stop-worker")


async def _until(worker: Worker, state: peer_pb2.WorkerState.ValueType) -> peer_pb2.WorkerReport:
    async for event in worker.events():
        if event.WhichOneof("event") == "report":
            if event.report.state == state:
                return event.report
            _require_alive(event.report)
    raise LocalVerifyError("a worker ended without a word")


def _require_alive(report: peer_pb2.WorkerReport) -> None:
    if report.state in FINAL_STATES:
        raise LocalVerifyError(f"the worker of stage {report.stage_index} ended: {report.error}")


def _generation_json(generation: Generation) -> dict[str, Any]:
    return {
        "token_ids": list(generation.token_ids),
        "load_seconds": round(generation.load_seconds, 3),
        "first_token_seconds": round(generation.first_token_seconds, 4),
        "decode_seconds": round(generation.decode_seconds, 4),
        "decode_tokens_per_second": round(generation.decode_tokens_per_second, 2),
    }
