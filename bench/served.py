"""What a client gets through gRPC beside mlx-lm alone, on the same GPU or CPU: one JSON object.

    python bench/served.py [--shape tiny|7b|32b] [--stages N] [--concurrency 1,8] [--prefill 8192 ...]

Nothing has to be set up. A model of random weights is written to a temporary folder once. First mlx-lm's
`generate_step` runs alone, in a process that is gone before anything else starts (`--after` runs it again at the end).
Then a cluster of its own comes up on the loopback interface: one `macmeshd` for each stage, each with a card of its own
where there are several, without multicast and with limits of memory that fit the cards. It loads the model as
`daemonctl load` does, and the same prompts go through the SDK's client, one request at a time and many at once.

The exit code is 1 where a worker's peak lies above its ledger. Progress goes to stderr. It runs from a checkout on
PYTHONPATH as well: no program has to be installed.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import aclosing
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macmesh import ClusterEvent, prefix_hit_rate
from macmesh_daemon.bench.arrival import ArrivalResult, measure_arrival
from macmesh_daemon.bench.baseline import Job, run_alone
from macmesh_daemon.bench.cases import WARM_UP_TOKENS, Case, warm_up_prompt_tokens
from macmesh_daemon.bench.results import Baseline, BaselineCase, CaseResult, Served
from macmesh_daemon.bench.runner import Runner
from macmesh_daemon.bench.statistics import Spread
from macmesh_daemon.bench.target import ClientTarget, served_of
from macmesh_daemon.clock import SystemClock
from macmesh_daemon.config import Config
from macmesh_daemon.demo.nodes import DemoCluster, DemoNode, NodeSettings
from macmesh_daemon.supervisor.environment import cuda_cards
from macmesh_rdma.options import LinkOptions
from random_model import SHAPES, default_folder, write_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from macmesh import AsyncClient
    from macmesh_daemon.bench.stages import StageWork

FORMAT = "macmesh-bench-served/1"
SEED = 1
#: Of a card, for models: the rest is for the driver and what others hold.
CARD_SHARE = 0.92
FORMATION_SECONDS = 90.0
#: Kernels are compiled while requests run, too: for each number of rows of a batch.
STEP_DEADLINE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """A CUDA card: its name for CUDA_VISIBLE_DEVICES, what it is, and its memory."""

    number: str
    name: str
    memory_bytes: int


def visible_cards() -> list[Card]:
    """The cards that this process may use, in the order in which it would."""
    program = shutil.which("nvidia-smi") or shutil.which("/usr/local/nvidia/bin/nvidia-smi")
    if program is None:
        # Their memory is not known: the node's own limit holds.
        return [Card(str(index), name, 0) for index, name in enumerate(cuda_cards())]
    told = subprocess.run(
        [program, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    return parse_cards(told.stdout if told.returncode == 0 else "", os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse_cards(told: str, visible: str | None) -> list[Card]:
    """`nvidia-smi`'s lines as cards; those that the variable names, where it is set."""
    found: dict[str, Card] = {}
    for line in told.splitlines():
        index, uuid, name, mebibytes = (part.strip() for part in line.split(",", 3))
        found[index] = found[uuid] = Card(index, name, int(mebibytes) << 20)
    if visible is None:
        return list(dict.fromkeys(found.values()))
    return [dataclasses.replace(found[n], number=n) for n in map(str.strip, visible.split(",")) if n in found]


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """What is measured; the first is one request at a time."""
    found = [
        Case("load", "cold", arguments.prompt, arguments.tokens, count, arguments.rounds)
        for count in arguments.concurrency
    ]
    return found + [Case("sweep", "cold", length, 2, 1, arguments.rounds) for length in arguments.prefill]


def job_of(
    folder: Path, results: "Sequence[CaseResult]", vocabulary: int, arguments: argparse.Namespace
) -> Job:
    """The same prompts for mlx-lm."""
    return Job(
        folder,
        tuple(results),
        SEED,
        vocabulary,
        arguments.chunk,
        arguments.warm_up,
        arguments.deadline,
    )


async def serve(
    folder: Path, cards: list[Card], arguments: argparse.Namespace
) -> tuple[Served, list[CaseResult], ArrivalResult | None, dict[str, Any]]:
    """Brings the cluster up, loads, and measures every case."""
    with tempfile.TemporaryDirectory(prefix="macmesh-served-") as place:
        nodes = Path(place)
        links = LinkOptions()
        settings = NodeSettings(
            usable_bytes=arguments.usable
            or (int(CARD_SHARE * min(card.memory_bytes for card in cards)) if cards else 0),
            runtime_reserve_bytes=arguments.reserve,
            bootstrap_expect=arguments.stages,
            mdns=False,
            probe_cache_dir=nodes,
            extra={
                "step_deadline_seconds": STEP_DEADLINE_SECONDS,
                "prefill_chunk_tokens": arguments.chunk,
                "bandwidth_probe": not arguments.no_probe,
                # The demo's are for its tiny model.
                "link_num_buffers": links.num_buffers,
                "link_frame_bytes": links.frame_bytes,
                "link_buffer_sizes": links.buffer_sizes,
            },
        )
        launchers = [
            ("env", f"CUDA_VISIBLE_DEVICES={cards[index % len(cards)].number}") if cards else ()
            for index in range(arguments.stages)
        ]
        async with DemoCluster(nodes, arguments.stages, settings, launchers=launchers) as cluster:
            await cluster.start()
            for node in cluster.nodes:
                await node.ready(FORMATION_SECONDS)
            async with cluster.nodes[0].client() as client:
                try:
                    return await _measure(client, folder, arguments)
                except BaseException:
                    _tell_logs(cluster.nodes)
                    raise


async def _measure(
    client: "AsyncClient", folder: Path, arguments: argparse.Namespace
) -> tuple[Served, list[CaseResult], ArrivalResult | None, dict[str, Any]]:
    await _formed(client, arguments.stages)
    cases = cases_of(arguments)
    longest = max(arguments.arrival + 1, *(case.prompt_tokens + case.new_tokens for case in cases))
    say("loading")
    began = time.perf_counter()
    await client.load(
        str(folder),
        context_tokens=arguments.context or max(8192, longest),
        slots=max(2 if arguments.arrival else 1, *(case.concurrency for case in cases)),
        stage_count=arguments.stages,
    )
    facts: dict[str, Any] = {"load_seconds": round(time.perf_counter() - began, 2)}
    deployment = (await client.status()).document.plan.deployments[0]
    facts["layers"] = [stage.end_layer - stage.first_layer for stage in deployment.stages]
    facts["predicted_tokens_per_second"] = round(1 / deployment.predicted_decode_seconds, 1)
    target = ClientTarget(client, arguments.deadline)
    served = served_of(await target.stage_stats())
    runner = Runner(target, SystemClock(), seed=SEED, vocabulary_tokens=served.vocabulary_tokens)
    chunk = served.prefill_chunk_tokens
    await runner.warm_up(warm_up_prompt_tokens(cases, chunk), arguments.tokens, arguments.warm_up)
    results = []
    arrival = None
    for case in cases:
        if case.concurrency > 1:
            # Batches have kernels of their own.
            short = dataclasses.replace(
                case, new_tokens=min(WARM_UP_TOKENS, case.new_tokens), rounds=1, prefix="warm"
            )
            await runner.case(short)
        say(f"{case.name}, {case.rounds} rounds")
        results.append(await runner.case(case))
    if arguments.arrival:
        say(f"a stream while a prompt of {arguments.arrival} tokens arrives, {arguments.rounds} rounds")
        # The first one compiles what batches of chunk and stream need.
        for rounds in (1, arguments.rounds):
            arrival = await measure_arrival(
                target,
                SystemClock(),
                served,
                prompt_tokens=arguments.arrival,
                rounds=rounds,
                seed=SEED + rounds,
                vocabulary=served.vocabulary_tokens,
            )
    # Asked of the worker now: the status tells what it said at its last ping, which a short run is over before.
    head = (await target.stage_stats()).stages[0]
    facts["prefix_hit_rate"] = prefix_hit_rate(head.stats.scheduler)
    return served, results, arrival, facts


async def _formed(client: "AsyncClient", nodes: int) -> None:
    async with asyncio.timeout(FORMATION_SECONDS), aclosing(client.watch()) as updates:
        async for update in updates:
            if isinstance(update, ClusterEvent):
                continue
            if update.has_quorum and len(update.document.members) == nodes:
                return


def _tell_logs(nodes: "Sequence[DemoNode]") -> None:
    for node in nodes:
        say(f"the end of {node.log_path}:\n{node.log_tail(40)}")


def report_of(
    results: "Sequence[CaseResult]",
    native: Baseline,
    after: Baseline | None,
    facts: dict[str, Any],
    arrival: ArrivalResult | None = None,
) -> dict[str, Any]:
    """Everything, and whether every worker kept to its ledger. Pure."""
    one = results[0]
    speed, first, inter = (
        one.decode_tokens_per_second,
        one.first_token_seconds.p50,
        one.inter_token_seconds,
    )
    alone = _native(native, one.case)
    theirs = [alone.decode_tokens_per_second]
    if after is not None:
        theirs.append(_native(after, one.case).decode_tokens_per_second)
    memory = memory_of([*(result.stages for result in results), *([arrival.stages] if arrival else [])])
    return {
        "format": FORMAT,
        **facts,
        "native_tokens_per_second": [round(value, 2) for value in theirs],
        "served_tokens_per_second": round(speed, 2),
        "ratio": round(speed / (sum(theirs) / len(theirs)), 4),
        "served_tokens_per_second_of_rounds": [round(r.decode_tokens_per_second, 2) for r in one.runs],
        "native_first_token_seconds": round(Spread.of(r.first_token_seconds for r in alone.runs).p50, 4),
        "first_token_seconds": round(first, 4),
        "inter_token_ms": {
            "p50": round(1e3 * inter.p50, 3),
            "p99": round(1e3 * inter.p99, 3),
            "largest": round(1e3 * inter.largest, 3),
        },
        "identical": [r.token_ids for r in alone.runs] == [r.token_ids for r in one.runs],
        "at_once": [
            {
                "requests": result.case.concurrency,
                "tokens_per_second": round(result.together_tokens_per_second, 2),
                "wall_tokens_per_second": round(result.aggregate_tokens_per_second, 2),
                "against_one": round(result.together_tokens_per_second / speed, 3) if speed else 0.0,
            }
            for result in results
            if result.case.concurrency > 1
        ],
        "prefill": [
            {
                "prompt_tokens": result.case.prompt_tokens,
                "first_token_seconds": round(result.first_token_seconds.p50, 4),
                "native_first_token_seconds": round(
                    Spread.of(r.first_token_seconds for r in _native(native, result.case).runs).p50, 4
                ),
            }
            for result in results
            if result.case.suite == "sweep"
        ],
        "arrival": {name: value for name, value in arrival.to_json().items() if name != "stages"}
        if arrival
        else None,
        "stage_ms_per_step": [
            {name: round(value, 4) for name, value in work.phase_milliseconds_per_step.items()}
            for work in one.stages
        ],
        "native_peak_memory_bytes": native.peak_memory_bytes[0],
        "memory": memory,
        "within": all(stage["within"] is True for stage in memory),
    }


def memory_of(looks: "Sequence[Sequence[StageWork]]") -> list[dict[str, Any]]:
    """Each stage's peak over all cases beside its ledger; `within` is None where a figure is missing."""
    found = []
    for works in zip(*looks, strict=True):
        missing = any(work.within_ledger is None for work in works)
        peak = max(work.peak_memory_bytes for work in works)
        found.append(
            {
                "stage": works[0].index,
                "layers": works[0].end_layer - works[0].first_layer,
                "peak_memory_bytes": peak,
                "ledger_bytes": works[0].ledger_bytes,
                "within": None if missing else peak <= works[0].ledger_bytes,
            }
        )
    return found


def _native(native: Baseline, case: Case) -> BaselineCase:
    return next(found for found in native.cases if found.case == case)


def say(text: str) -> None:
    """Progress."""
    print(f"served: {text}", file=sys.stderr, flush=True)


def parse(argv: "Sequence[str] | None") -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description="what a client gets through gRPC beside mlx-lm alone")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--bits", type=int, default=4, help="0: not quantised")
    parser.add_argument("--model", type=Path, help="where the model is or goes (default: a temporary folder)")
    parser.add_argument("--stages", type=int, default=1, help="daemons; stage k has card k")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", default="1,8", help="requests at once, the first must be 1")
    parser.add_argument("--prefill", type=int, nargs="*", default=[], help="lengths of long prompts")
    parser.add_argument(
        "--arrival", type=int, default=0, metavar="N", help="also a stream while a prompt of N tokens arrives"
    )
    parser.add_argument("--context", type=int, default=0, help="0: 8192, or what the longest prompt needs")
    parser.add_argument("--chunk", type=int, default=Config().prefill_chunk_tokens)
    parser.add_argument("--warm-up", type=int, default=2, help="requests that are not measured")
    parser.add_argument("--after", action="store_true", help="run mlx-lm after it, too")
    parser.add_argument("--cpu", action="store_true", help="give the daemons no card of their own")
    parser.add_argument(
        "--usable", type=int, default=0, help="bytes that each daemon may use (default: of its card)"
    )
    parser.add_argument(
        "--reserve", type=int, default=Config().runtime_reserve_bytes, help="of the runtime, bytes"
    )
    parser.add_argument("--no-probe", action="store_true", help="do not measure the memory bandwidth")
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds for each request and baseline")
    arguments = parser.parse_args(argv)
    arguments.concurrency = [int(part) for part in arguments.concurrency.split(",")]
    if arguments.concurrency[0] != 1:
        parser.error("the first of --concurrency is 1: everything is compared with it")
    return arguments


def main(argv: "Sequence[str] | None" = None) -> int:
    """Measure and print."""
    arguments = parse(argv)
    cards = [] if arguments.cpu else visible_cards()
    if cards:
        folder = Path(tempfile.gettempdir()) / f"macmesh-bench-kernels-{metadata.version('mlx')}"
        os.environ.setdefault("MLX_PTX_CACHE_DIR", str(folder))
    folder = arguments.model or default_folder(arguments.shape, arguments.bits)
    say(f"the model is in {folder}")
    began = time.perf_counter()
    model_bytes = write_model(folder, arguments.shape, arguments.bits)
    facts: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cards": [card.name for card in cards],
        "mlx": metadata.version("mlx"),
        "shape": arguments.shape,
        "bits": arguments.bits,
        "model_bytes": model_bytes,
        "model_seconds": round(time.perf_counter() - began, 2),
        "stages": arguments.stages,
        "prompt_tokens": arguments.prompt,
        "new_tokens": arguments.tokens,
        "rounds": arguments.rounds,
    }
    vocabulary = int(SHAPES[arguments.shape]["vocab_size"])
    asked = [CaseResult(case, (), 0.0, ()) for case in cases_of(arguments)]
    one_card = {"CUDA_VISIBLE_DEVICES": cards[0].number} if cards else {}
    say("mlx-lm alone")
    native = asyncio.run(run_alone(job_of(folder, asked, vocabulary, arguments), one_card))
    served, results, arrival, more = asyncio.run(serve(folder, cards, arguments))
    if (served.vocabulary_tokens, served.prefill_chunk_tokens) != (vocabulary, arguments.chunk):
        say(f"the cluster serves other prompts than mlx-lm had: {served}")
        return 1
    facts |= {"context_tokens": served.context_tokens, "slots": served.slots, **more}
    after = None
    if arguments.after:
        say("mlx-lm alone, again")
        after = asyncio.run(run_alone(job_of(folder, asked, vocabulary, arguments), one_card))
    report = report_of(results, native, after, facts, arrival)
    print(json.dumps(report, indent=2), flush=True)
    return 0 if report["within"] else 1


if __name__ == "__main__":
    sys.exit(main())
