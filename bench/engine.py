"""The engine beside mlx-lm's own generation, on this machine's GPU or CPU: one JSON object per measurement.

    python bench/engine.py [--shape tiny|7b|32b] [--stages N ...] [--gpus N] [--what native,decode,many,gap,prefill]

A model of random weights (4 bits, as Qwen2.5 of that size) is written to a folder once. What is measured, in processes
of its own:

* ``native``: mlx-lm's `generate_step` on the same prompts, with nothing else in the process;
* ``decode``: one request through workers, for each number of stages: tokens per second, milliseconds per step, what the
  stages' time went into (``host``: this machine's work for a step, no waiting), and whether the tokens are mlx-lm's;
* ``many``: as many requests at once as stages, and eight, beside one;
* ``prefill``: the time of a long prompt, for each number of stages;
* ``gap``: the time between two tokens of a running request while a prompt of 4,000 tokens arrives.

After all of it every worker's peak is set beside its ledger. The last line sums up; the exit code is 1 where a peak
lies above its ledger. With ``--gpus N`` stage k uses GPU k modulo N. The workers are driven as the daemon does it,
without cluster and gRPC; `served.py` has both.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from macmesh_daemon.bench.baseline import Job, run_alone
from macmesh_daemon.bench.cases import Case, prompts
from macmesh_daemon.bench.results import Baseline, CaseResult
from macmesh_daemon.bench.statistics import Spread
from planned_workers import Plan, Request, planned, random_prompt, split_ms
from random_model import SHAPES, default_folder, write_model

SEED = 1
CHUNK_TOKENS = 1024
#: Of the prompt that arrives while a stream runs.
LONG_PROMPT_TOKENS = 4000
#: The long prompt is sent after so many tokens of the stream.
STEADY_TOKENS = 32
CONTEXT_TOKENS = 8192


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """What mlx-lm runs too."""
    cases = [Case("load", "cold", arguments.prompt, arguments.tokens, 1, arguments.rounds)]
    if "prefill" in arguments.what:
        cases += [Case("sweep", "cold", length, 2, 1, arguments.rounds) for length in arguments.prefill]
    return cases


def native(folder: Path, arguments: argparse.Namespace) -> Baseline:
    """mlx-lm's own run of the same prompts."""
    job = Job(
        folder,
        tuple(CaseResult(case, (), 0.0, ()) for case in cases_of(arguments)),
        SEED,
        vocabulary_of(arguments),
        CHUNK_TOKENS,
        2,
        arguments.deadline,
    )
    one_gpu = {"CUDA_VISIBLE_DEVICES": "0"} if arguments.gpus else {}
    return asyncio.run(run_alone(job, one_gpu))


def vocabulary_of(arguments: argparse.Namespace) -> int:
    """Prompts are drawn below this."""
    return int(SHAPES[arguments.shape]["vocab_size"])


def environment(index: int, gpus: int) -> dict[str, str]:
    """Of a stage's worker."""
    more = {"CUDA_VISIBLE_DEVICES": str(index % gpus)} if gpus else {}
    return {**os.environ, **more}


async def measure(
    folder: Path, stages: int, arguments: argparse.Namespace, alone: Baseline | None
) -> dict[str, Any]:
    """All measurements with so many stages; what the summary needs."""
    longest = max([arguments.prompt + arguments.tokens, *arguments.prefill])
    starts = await planned(
        folder,
        stages,
        context_tokens=max(CONTEXT_TOKENS, longest + 8),
        slots=8,
        chunk_tokens=CHUNK_TOKENS,
        step_deadline_seconds=120.0,
        transfers=arguments.transfers,
    )
    async with asyncio.timeout(arguments.deadline):
        async with Plan.running(starts, lambda index: environment(index, arguments.gpus)) as plan:
            found: dict[str, Any] = {"stages": stages}
            await plan.run("warm", random_prompt(arguments.prompt, vocabulary_of(arguments), "warm"), 16)
            if "decode" in arguments.what:
                found |= await _decode(plan, stages, arguments, alone)
            if "many" in arguments.what:
                found |= await _many(plan, stages, arguments)
            if "prefill" in arguments.what:
                await _prefill(plan, stages, arguments)
            if "gap" in arguments.what:
                found |= await _gap(plan, stages, arguments)
            memory = await plan.memory()
    found["within"] = all(worker["within"] for worker in memory)
    tell("memory", stages, {"workers": memory, "within": found["within"]})
    return found


async def _decode(
    plan: Plan, stages: int, arguments: argparse.Namespace, alone: Baseline | None
) -> dict[str, Any]:
    case = cases_of(arguments)[0]
    before = await plan.pongs()
    runs = []
    for number in range(case.rounds):
        [asked] = prompts(case, SEED, vocabulary_of(arguments), number)
        runs.append(await plan.run(f"one{number}", asked, case.new_tokens))
    split = split_ms(before, await plan.pongs())
    speeds = [run.tokens_per_second for run in runs]
    figures = {
        "tokens_per_second": Spread.of(speeds).p50,
        "slowest_and_fastest": [round(min(speeds), 2), round(max(speeds), 2)],
        "ms_per_step": 1000 / Spread.of(speeds).p50,
        "first_token_seconds": Spread.of(run.first_token_seconds for run in runs).p50,
        "split_ms": split,
    }
    found = {
        "tokens_per_second": figures["tokens_per_second"],
        "host_ms_per_step": [s["host"] for s in split],
    }
    if alone is not None:
        theirs = alone.cases[0]
        figures["ratio"] = found["ratio"] = Spread.of(speeds).p50 / theirs.decode_tokens_per_second
        figures["identical"] = found["identical"] = [list(run.token_ids) for run in theirs.runs] == [
            run.token_ids for run in runs
        ]
    tell("decode", stages, figures)
    return found


async def _many(plan: Plan, stages: int, arguments: argparse.Namespace) -> dict[str, Any]:
    vocabulary = vocabulary_of(arguments)
    rates: dict[int, float] = {}
    for count in sorted({1, stages, 8}):
        found = []
        before = await plan.pongs()
        # The first round is for warming up: a batch has kernels of its own.
        for number in range(arguments.rounds + 1):
            before = await plan.pongs() if number == 1 else before
            names = [f"many{count}.{number}.{index}" for index in range(count)]
            requests = [
                await plan.submit(name, random_prompt(arguments.prompt, vocabulary, name), arguments.tokens)
                for name in names
            ]
            for request in requests:
                await request.ended.wait()
            found.append(together(requests))
        spread = Spread.of(found[1:])
        rates[count] = spread.p50
        figures = {
            "requests": count,
            "tokens_per_second": spread.p50,
            "against_one": spread.p50 / rates[1],
            "split_ms": split_ms(before, await plan.pongs()),
        }
        tell("many", stages, figures)
    return {"eight_against_one": rates[8] / rates[1]}


def together(requests: Sequence[Request]) -> float:
    """Tokens per second of all, from the last first token to the first last one; 0 where that is no time."""
    start, end = max(r.stamps[0] for r in requests), min(r.stamps[-1] for r in requests)
    tokens = sum(start < stamp <= end for r in requests for stamp in r.stamps)
    return tokens / (end - start) if end > start else 0.0


async def _prefill(plan: Plan, stages: int, arguments: argparse.Namespace) -> None:
    for case in cases_of(arguments)[1:]:
        vocabulary, length = vocabulary_of(arguments), case.prompt_tokens
        await plan.run(f"cold{length}", random_prompt(length, vocabulary, "cold"), 1)
        before = await plan.pongs()
        runs = [
            await plan.run(f"long{length}.{n}", prompts(case, SEED, vocabulary, n)[0], case.new_tokens)
            for n in range(case.rounds)
        ]
        seconds = Spread.of(run.first_token_seconds for run in runs).p50
        split = split_ms(before, await plan.pongs())
        figures = {"prompt_tokens": length, "first_token_seconds": seconds, "split_ms": split}
        tell("prefill", stages, {**figures, "prompt_tokens_per_second": length / seconds})


async def _gap(plan: Plan, stages: int, arguments: argparse.Namespace) -> dict[str, Any]:
    vocabulary = vocabulary_of(arguments)
    steady: list[float] = []
    during: list[float] = []
    firsts: list[float] = []
    # The first round is for warming up, as above.
    for number in range(arguments.rounds + 1):
        stream = await plan.submit(
            f"stream{number}", random_prompt(64, vocabulary, "stream", number), CONTEXT_TOKENS - 64
        )
        await plan.reach(stream, STEADY_TOKENS)
        long = await plan.run(
            f"long{number}", random_prompt(LONG_PROMPT_TOKENS, vocabulary, "long", number), 4
        )
        await plan.reach(stream, len(stream.stamps) + 1)
        if stream.ended.is_set():
            raise SystemExit("the stream ended before the prompt was read: its figures would say nothing")
        await plan.cancel(f"stream{number}")
        if number:
            early, late = gaps(stream.stamps, long.began, long.stamps[0])
            steady += early
            during += late
            firsts.append(long.first_token_seconds)
    quiet, busy = Spread.of(steady), Spread.of(during)
    figures = {
        "steady_p50_ms": 1000 * quiet.p50,
        "p50_ms": 1000 * busy.p50,
        "p99_ms": 1000 * busy.p99,
        "max_ms": 1000 * busy.largest,
        "gaps": busy.count,
        "long_first_token_seconds": Spread.of(firsts).p50,
    }
    tell("gap", stages, figures)
    return {"gap_p99_ms": round(figures["p99_ms"], 2)}


def gaps(stamps: Sequence[float], sent: float, first: float) -> tuple[list[float], list[float]]:
    """Times between tokens before the long prompt was sent, and from then to its first token."""
    early = [b - a for a, b in itertools.pairwise(stamps) if b <= sent]
    return early, [b - a for a, b in itertools.pairwise(stamps) if b > sent and a < first]


def tell(what: str, stages: int, figures: dict[str, Any]) -> None:
    """One line of the output."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps({"what": what, "stages": stages, **rounded}), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="the engine beside mlx-lm on this machine")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--bits", type=int, default=4, help="0: not quantised")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill", type=int, nargs="+", default=[])
    parser.add_argument("--what", default="native,decode,many,gap")
    parser.add_argument("--transfers", choices=("auto", "host", "graph"), default="auto")
    parser.add_argument("--deadline", type=float, default=900.0, help="seconds for each number of stages")
    arguments = parser.parse_args(argv)
    arguments.what = arguments.what.split(",")
    if "prefill" in arguments.what:
        arguments.prefill = arguments.prefill or [8192]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {arguments.gpus} GPUs"
    head = {"benchmark": "engine", "machine": machine, "shape": arguments.shape}
    print(json.dumps({**head, "transfers": arguments.transfers}), flush=True)
    folder = default_folder(arguments.shape, arguments.bits)
    write_model(folder, arguments.shape, arguments.bits)
    alone = native(folder, arguments) if "native" in arguments.what else None
    for case in alone.cases if alone else ():
        first = Spread.of(run.first_token_seconds for run in case.runs).p50
        figures = {"prompt_tokens": case.case.prompt_tokens, "first_token_seconds": first}
        tell("native", 0, {**figures, "tokens_per_second": case.decode_tokens_per_second})
    found = [asyncio.run(measure(folder, stages, arguments, alone)) for stages in arguments.stages]
    within = all(one["within"] for one in found)
    summary = {"native_tokens_per_second": alone.cases[0].decode_tokens_per_second} if alone else {}
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in one.items()} for one in found]
    print(json.dumps({"what": "summary", **summary, "plans": rounded, "within": within}), flush=True)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
