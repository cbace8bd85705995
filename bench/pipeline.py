"""Decode speed of a pipeline of stages on this machine, beside single-process mlx-lm in the same run.

    python bench/pipeline.py [--model FOLDER] [--stages N] [--tokens N] [--runs N] [--transfers auto|host|graph]

Prints JSON: tokens per second of both and milliseconds per token that the pipeline adds, each as minimum,
median and maximum over the runs. All stages share this machine's cores, so on a small machine this measures
the cost of the hops, not a gain.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
from pathlib import Path

from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.models.tokenizer import ModelTokenizer
from macmesh_daemon.supervisor.verify import VerifyReport, verify


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


async def run(model: Path, stages: int, tokens: int, runs: int, transfers: str) -> list[VerifyReport]:
    """One comparison after another."""
    prompt = ModelTokenizer.from_folder(model).encode("A node is a machine that runs")
    return [await verify(model, prompt, tokens, stages=stages, transfers=transfers) for _ in range(runs)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="decode speed of a pipeline beside single-process mlx-lm")
    parser.add_argument("--model", type=Path, default=None, help="model folder (default: the shipped one)")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--transfers", choices=("auto", "host", "graph"), default="auto")
    arguments = parser.parse_args()
    model = arguments.model or demo_model_folder()
    reports = asyncio.run(run(model, arguments.stages, arguments.tokens, arguments.runs, arguments.transfers))
    ours = [r.pipeline.decode_tokens_per_second for r in reports]
    theirs = [r.reference.decode_tokens_per_second for r in reports]
    result = {
        "benchmark": "pipeline",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "model": model.name,
        "stages": arguments.stages,
        "transfers": arguments.transfers,
        "tokens": arguments.tokens,
        "runs": arguments.runs,
        "identical": all(r.identical for r in reports),
        "pipeline_tokens_per_second": spread(ours),
        "mlx_lm_tokens_per_second": spread(theirs),
        "added_ms_per_token": spread([1000 / a - 1000 / b for a, b in zip(ours, theirs, strict=True)]),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
