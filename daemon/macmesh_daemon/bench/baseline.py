"""Runs what was measured on mlx-lm as it is, in processes of its own, and sets both side by side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from macmesh_daemon.bench.cases import WARM_UP_TOKENS, prompt, prompts, warm_up_prompt_tokens
from macmesh_daemon.bench.errors import LocalBaselineError
from macmesh_daemon.bench.requests import Arrival, RequestRun
from macmesh_daemon.bench.results import Baseline, BaselineCase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from macmesh_daemon.bench.results import CaseResult

COMMAND: Final = (sys.executable, "-m", "macmesh_daemon.engine.baseline")
ALONE: Final = "mlx-lm"
RING: Final = "mlx-lm ring"


@dataclass(frozen=True, slots=True)
class Job:
    """What the baseline is to run.

    Attributes:
        model_folder: On this machine.
        results: What the cluster did. Of these the cold cases with one request at a time are run.
        seed: Of the prompts, as the cluster had it.
        vocabulary_tokens: As the cluster had it.
        prefill_chunk_tokens: As the plan has it.
        warm_up_requests: Unmeasured requests, as the cluster had them.
        deadline_seconds: For each baseline, loading included.
    """

    model_folder: Path
    results: tuple[CaseResult, ...]
    seed: int
    vocabulary_tokens: int
    prefill_chunk_tokens: int
    warm_up_requests: int
    deadline_seconds: float

    @property
    def comparable(self) -> tuple[CaseResult, ...]:
        """Those that mlx-lm alone can run: cold, one request at a time."""
        return tuple(r for r in self.results if r.case.prefix == "cold" and r.case.concurrency == 1)

    def wire(self) -> dict[str, Any]:
        """As the process reads it; the prompts are exactly those that the cluster had."""
        asked: list[list[int]] = []
        max_tokens: list[int] = []
        for result in self.comparable:
            for number in range(result.case.rounds):
                asked += prompts(result.case, self.seed, self.vocabulary_tokens, number)
                max_tokens.append(result.case.new_tokens)
        longest = warm_up_prompt_tokens((r.case for r in self.comparable), self.prefill_chunk_tokens)
        warm_up = [
            prompt(self.seed, self.vocabulary_tokens, longest, "baseline warm-up", number)
            for number in range(self.warm_up_requests)
        ]
        return {
            "runs": asked,
            "max_tokens": max_tokens,
            "warm_up": warm_up,
            "warm_up_tokens": min([WARM_UP_TOKENS, *max_tokens]),
            "prefill_step_size": self.prefill_chunk_tokens,
        }


async def run_alone(job: Job, environment: Mapping[str, str] | None = None) -> Baseline:
    """mlx-lm in one process.

    Args:
        job: What to run.
        environment: Variables that it gets beside this process's own.

    Raises:
        LocalBaselineError: nothing can be compared, or the process failed or took too long.
    """
    [told] = await _processes(job, [(environment or {}, ())])
    return _read(ALONE, job, [told])


async def run_ring(job: Job, ranks: int) -> Baseline:
    """mlx-lm's own pipeline between processes of this machine, over MLX's `ring`; refused where it has none.

    Raises:
        LocalBaselineError: as `run_alone`.
    """
    with tempfile.TemporaryDirectory(prefix="macmesh-ring-") as folder:
        hosts = Path(folder) / "hosts.json"
        ports = await asyncio.to_thread(_free_ports, ranks)
        await asyncio.to_thread(
            hosts.write_text, json.dumps([[f"127.0.0.1:{port}"] for port in ports]), "utf-8"
        )
        environments = [
            ({"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}, ("--ring",)) for rank in range(ranks)
        ]
        told = await _processes(job, environments)
    refusal = next((str(t["refusal"]) for t in told if "refusal" in t), "")
    if refusal:
        return Baseline(RING, refusal=refusal)
    return _read(RING, job, sorted(told, key=lambda t: int(t["rank"])))


async def _processes(
    job: Job, starts: Sequence[tuple[Mapping[str, str], tuple[str, ...]]]
) -> list[dict[str, Any]]:
    """What each process says; all are gone on return."""
    if not job.comparable:
        raise LocalBaselineError(
            "the baseline runs cold prompts, one request at a time, and none were measured; "
            "measure with concurrency 1 and cold prefixes"
        )
    data = json.dumps(job.wire()).encode()
    running: list[asyncio.subprocess.Process] = []
    try:
        for environment, arguments in starts:
            running.append(
                await asyncio.create_subprocess_exec(
                    *COMMAND,
                    str(job.model_folder),
                    *arguments,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env={**os.environ, **environment},
                )
            )
        async with asyncio.timeout(job.deadline_seconds):
            return await _answers(running, data)
    except TimeoutError:
        raise LocalBaselineError(
            f"mlx-lm was not done within {job.deadline_seconds:g} s; allow more with --timeout"
        ) from None
    finally:
        for process in running:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


async def _answers(running: Sequence[asyncio.subprocess.Process], data: bytes) -> list[dict[str, Any]]:
    """Of all processes; where one fails, its error at once."""
    try:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(_talk(p, data), name=f"baseline {p.pid}") for p in running]
    except* LocalBaselineError as group:
        raise group.exceptions[0] from None
    return [task.result() for task in asked]


async def _talk(process: asyncio.subprocess.Process, data: bytes) -> dict[str, Any]:
    out, err = await process.communicate(data)
    if process.returncode != 0:
        tail = " | ".join(err.decode(errors="replace").strip().splitlines()[-3:])
        raise LocalBaselineError(f"mlx-lm failed (exit code {process.returncode}): {tail}")
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


def _read(name: str, job: Job, told: Sequence[Mapping[str, Any]]) -> Baseline:
    runs = iter(told[0]["runs"])
    cases = []
    for result in job.comparable:
        theirs = [_run_of(result.case.prompt_tokens, next(runs)) for _ in range(result.case.rounds)]
        identical = [run.token_ids for run in theirs] == [run.token_ids for run in result.runs]
        cases.append(BaselineCase(result.case, tuple(theirs), identical))
    return Baseline(name, tuple(cases), tuple(int(rank["peak_memory_bytes"]) for rank in told))


def _run_of(prompt_tokens: int, told: Mapping[str, Any]) -> RequestRun:
    arrivals = tuple(
        Arrival(float(seconds), (int(token),))
        for token, seconds in zip(told["token_ids"], told["seconds"], strict=True)
    )
    return RequestRun(prompt_tokens, 0.0, arrivals)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
