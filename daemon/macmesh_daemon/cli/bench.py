"""What `daemonctl bench` does with its arguments."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from macmesh import AsyncClient, Timeouts
from macmesh_daemon.bench.arrival import ArrivalResult, measure_arrival
from macmesh_daemon.bench.baseline import Job, run_alone, run_ring
from macmesh_daemon.bench.cases import (
    Case,
    check_fits,
    load_cases,
    rungs,
    sweep_cases,
    sweep_lengths,
    warm_up_prompt_tokens,
)
from macmesh_daemon.bench.errors import BenchError, LocalBenchArgumentError
from macmesh_daemon.bench.results import BenchReport
from macmesh_daemon.bench.runner import Runner
from macmesh_daemon.bench.target import ClientTarget, served_of
from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.bench_view import render_report, rung_line
from macmesh_daemon.cli.connect import socket_argument
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import (
    encodable,
    print_data,
    print_json,
    printable,
    talk,
    terminal_width,
    wants_color,
)
from macmesh_daemon.clock import SystemClock

if TYPE_CHECKING:
    import argparse

    from macmesh_daemon.bench.cases import Prefix
    from macmesh_daemon.bench.results import Baseline, CaseResult, ClimbResult, Served


def run(args: argparse.Namespace) -> int:
    """Measure, and print what came out; FAILED where a ledger did not hold."""
    if args.plot:
        from macmesh_daemon.cli.plot import require_matplotlib  # noqa: PLC0415  only --plot needs it

        require_matplotlib()
    try:
        report = asyncio.run(_measure(args))
    except LocalBenchArgumentError as error:
        raise CommandError(str(error), reason="INVALID_ARGUMENT", exit_code=exit_codes.USAGE) from error
    except BenchError as error:
        raise CommandError(str(error), reason="BENCH_FAILED") from error
    if args.plot:
        from macmesh_daemon.cli.bench_plot import draw_report  # noqa: PLC0415  as above

        draw_report(report, args.plot)
        talk(f"wrote {args.plot}")
    if args.json:
        print_json(args, report.to_json())
    else:
        color, width = wants_color(args, sys.stdout), terminal_width(sys.stdout)
        print_data(encodable(render_report(report, width, color=color), sys.stdout.encoding))
    if report.climb is not None and report.climb.complaint:
        talk(f"daemonctl: the climb stopped {report.climb.complaint}")
        return exit_codes.FAILED
    for complaint in report.ledger_complaints:
        talk(f"daemonctl: a ledger does not hold: {complaint}")
    return exit_codes.FAILED if report.ledger_complaints else exit_codes.OK


async def _measure(args: argparse.Namespace) -> BenchReport:
    # What is measured must not be taken up elsewhere.
    timeouts = Timeouts(generate_resume=0)
    async with AsyncClient(socket_argument(args), timeouts=timeouts) as client:
        target = ClientTarget(client, args.timeout)
        served = served_of(await target.stage_stats())
        vocabulary = args.vocabulary or served.vocabulary_tokens
        cases = _cases(args, served)
        check_fits(cases, served.context_tokens)
        lengths = rungs(served.context_tokens, args.tokens) if args.climb else ()
        folder = await asyncio.to_thread(_baseline_folder, args, served) if args.baseline else Path()
        talk(
            f"{printable(served.model_id)}: {served.stage_count} stages, context {served.context_tokens:,}, "
            f"{served.slots} slots; warming up"
        )
        runner = Runner(target, SystemClock(), seed=args.seed, vocabulary_tokens=vocabulary)
        if cases:
            warm_up_tokens = warm_up_prompt_tokens(cases, served.prefill_chunk_tokens)
            await runner.warm_up(warm_up_tokens, args.tokens, args.warm_up)
        results = await _run_cases(runner, cases)
        climb = await _climb(runner, lengths, args.tokens) if args.climb else None
        arrival = await _arrival(target, served, vocabulary, args) if args.arrival else None
        local_stages = await _stages_here(client) if args.baseline else 0
    baselines: tuple[Baseline, ...] = ()
    if args.baseline:
        job = Job(
            folder,
            results,
            args.seed,
            vocabulary,
            served.prefill_chunk_tokens,
            args.warm_up,
            args.timeout,
        )
        baselines = await _baselines(job, served, local_stages)
    return BenchReport(served, args.seed, results, climb, baselines, arrival)


async def _arrival(
    target: ClientTarget, served: Served, vocabulary: int, args: argparse.Namespace
) -> ArrivalResult:
    talk(f"a stream while a prompt of {args.arrival:,} tokens arrives, {args.repeats} rounds")
    return await measure_arrival(
        target,
        SystemClock(),
        served,
        prompt_tokens=args.arrival,
        rounds=args.repeats,
        seed=args.seed,
        vocabulary=vocabulary,
    )


def _baseline_folder(args: argparse.Namespace, served: Served) -> Path:
    folder = Path(args.baseline_model or served.model_path).expanduser()
    if not folder.is_dir():
        raise LocalBenchArgumentError(
            f"--baseline needs the model on this machine, and {folder} is no folder here: name one with "
            "--baseline-model"
        )
    return folder


def _cases(args: argparse.Namespace, served: Served) -> tuple[Case, ...]:
    if args.sweep is not None:
        lengths = args.sweep or sweep_lengths(served.context_tokens, args.tokens)
        return sweep_cases(lengths, args.tokens, rounds=args.repeats)
    if args.climb:
        return ()
    prefixes: tuple[Prefix, ...] = ("cold", "warm") if args.prefix == "both" else (args.prefix,)
    return load_cases(
        args.prompt,
        args.tokens,
        concurrencies=args.concurrency,
        prefixes=prefixes,
        rounds=args.repeats,
    )


async def _run_cases(runner: Runner, cases: tuple[Case, ...]) -> tuple[CaseResult, ...]:
    results = []
    for case in cases:
        talk(
            f"{case.prefix} prompt of {case.prompt_tokens:,} tokens, {case.new_tokens} new, "
            f"{case.concurrency} at once, {case.rounds} rounds"
        )
        results.append(await runner.case(case))
    return tuple(results)


async def _climb(runner: Runner, lengths: tuple[int, ...], new_tokens: int) -> ClimbResult:
    talk(f"one conversation up to {lengths[-1]:,} tokens")
    return await runner.climb(lengths, new_tokens, lambda rung: talk(rung_line(rung)))


async def _stages_here(client: AsyncClient) -> int:
    """Stages of the plan where all of them are on the machine of the node that answers, else 0."""
    status = await client.status()
    hosts = {m.node_id: m.facts.host_id for m in status.document.members}
    nodes = [s.node_id for d in status.document.plan.deployments for s in d.stages]
    here = hosts.get(status.node_id)
    return len(nodes) if here and all(hosts.get(node) == here for node in nodes) else 0


async def _baselines(job: Job, served: Served, local_stages: int) -> tuple[Baseline, ...]:
    talk("the same on mlx-lm alone")
    alone = await run_alone(job)
    if served.stage_count < 2:  # noqa: PLR2004  a pipeline has two stages
        return (alone,)
    if local_stages < served.stage_count:
        talk("no baseline over MLX's ring: the stages are on several machines")
        return (alone,)
    talk(f"the same on mlx-lm's own pipeline, {local_stages} processes over MLX's ring")
    ring = await run_ring(job, local_stages)
    if ring.refusal:
        talk(f"no baseline over MLX's ring: {ring.refusal}")
    return (alone, ring)
