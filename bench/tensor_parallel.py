"""Tensor parallelism beside one process, on this machine: one JSON object per measurement.

    python bench/tensor_parallel.py MODEL [--ways N ...] [--gpus N] [--prompt N] [--tokens N]

MODEL is a folder. For one process and for each number of ways one greedy request runs through real workers: seconds to
the first token, tokens per second, and whether the tokens are those of one process. With ``--gpus N`` rank k uses GPU k
modulo N; without, all ranks share the machine, so that the figures tell what the sums cost and not what is gained.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
from pathlib import Path

from macmesh_daemon.supervisor.local_plan import count_layers, local_plan
from macmesh_daemon.supervisor.process import WorkerProcess
from macmesh_daemon.supervisor.verify import Generation, run_pipeline


async def generate(model: Path, ways: int, arguments: argparse.Namespace) -> Generation:
    """One request through so many ranks."""
    starts = local_plan(
        [model] * ways,
        [],
        layer_count=count_layers(model),
        context_tokens=arguments.prompt + arguments.tokens,
        step_deadline_seconds=arguments.deadline,
        tensor_parallel=ways > 1,
    )
    ranks = itertools.count()

    def worker() -> WorkerProcess:
        gpu = {"CUDA_VISIBLE_DEVICES": str(next(ranks) % arguments.gpus)} if arguments.gpus else {}
        return WorkerProcess(environment={**os.environ, **gpu})

    prompt = [(7 * index * index + 3) % 250 + 4 for index in range(arguments.prompt)]
    async with asyncio.timeout(arguments.deadline):
        return await run_pipeline(starts, prompt, arguments.tokens, worker)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="tensor parallelism beside one process on this machine")
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--ways", type=int, nargs="+", default=[2])
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--deadline", type=float, default=300.0, help="seconds for each measurement")
    arguments = parser.parse_args()
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {arguments.gpus} GPUs"
    print(json.dumps({"benchmark": "tensor_parallel", "machine": machine, "model": arguments.model.name}))
    alone: Generation | None = None
    for ways in (1, *arguments.ways):
        made = asyncio.run(generate(arguments.model.absolute(), ways, arguments))
        alone = made if alone is None else alone
        figures = {
            "ways": ways,
            "prompt_tokens": arguments.prompt,
            "first_token_seconds": round(made.first_token_seconds, 4),
            "tokens_per_second": round(made.decode_tokens_per_second, 2),
            "same_tokens": made.token_ids == alone.token_ids,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
