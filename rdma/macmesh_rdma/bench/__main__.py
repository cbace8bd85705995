"""Measures the transport on this machine: ours, MLX's ``ring``, and the limits, in one run."""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
from typing import Any, cast

from macmesh_rdma.bench.limits import memcpy
from macmesh_rdma.bench.rank import new_key
from macmesh_rdma.bench.rows import SIZES_BYTES

_PROVIDERS = ("ring", "shm", "tcp")
#: A measurement that takes longer hangs: its ranks are ended.
_DEADLINE_SECONDS = 120.0


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m macmesh_rdma.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the list of rows as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--providers", nargs="+", default=list(_PROVIDERS), choices=_PROVIDERS)
    parser.add_argument("--preset", default="latency", choices=("latency", "throughput"))
    parser.add_argument("--hops", action="store_true", help="measure hops between GPU streams instead")
    parser.add_argument(
        "--host", action="store_true", help="measure host transfers, beside sends through MLX, instead"
    )
    arguments = parser.parse_args()
    if arguments.host:
        providers = [provider for provider in arguments.providers if provider != "ring"]
        rows = measure_host(providers, quick=arguments.quick, preset=arguments.preset)
    elif arguments.hops:
        rows = measure_hops(arguments.providers, quick=arguments.quick)
    else:
        rows = measure(arguments.providers, quick=arguments.quick, preset=arguments.preset)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        _print_table(rows)


def measure(providers: list[str], *, quick: bool, preset: str = "latency") -> list[dict[str, Any]]:
    """All rows of one run."""
    rows = [memcpy(size_bytes, quick=quick).to_json() for size_bytes in SIZES_BYTES]
    rows += run_ranks(2, {"provider": "socket", "quick": quick})
    for provider in providers:
        task = {"provider": provider, "quick": quick, "preset": preset}
        rows += run_ranks(2, {**task, "what": ["sends", "sends_apart", "all_sums", "late_peer"]})
        rows += run_ranks(4, {**task, "what": ["all_sums"]})
        if provider != "ring":
            rows += run_ranks(2, {**task, "what": ["links"]})
    return rows


def measure_hops(providers: list[str], *, quick: bool) -> list[dict[str, Any]]:
    """What a hop costs between two processes that compute on MLX's default device."""
    rows = run_ranks(1, {"provider": "none", "quick": quick})
    for provider in providers:
        rows += run_ranks(2, {"provider": provider, "quick": quick, "preset": "latency", "what": ["hops"]})
    return rows


def measure_host(providers: list[str], *, quick: bool, preset: str = "latency") -> list[dict[str, Any]]:
    """Host transfers, and beside them in the same run what `mx.distributed` makes of the same links."""
    rows = []
    for provider in providers:
        task = {"provider": provider, "quick": quick, "preset": preset}
        rows += run_ranks(2, {**task, "what": ["host"]})
        rows += run_ranks(2, {**task, "what": ["sends"]})
    return rows


def run_ranks(count: int, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs one measurement in as many processes and returns their rows."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "macmesh_rdma.bench.rank"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    watch = threading.Timer(_DEADLINE_SECONDS, _kill, (processes,))
    watch.start()
    try:
        key = new_key()
        for rank, process in enumerate(processes):
            _tell(process, {**task, "rank": rank, "size": count, "key": key})
        endpoints = [_hear(process)["endpoint"] for process in processes]
        for process in processes:
            _tell(process, {"endpoints": endpoints})
        return [row for process in processes for row in _hear(process)["rows"]]
    finally:
        watch.cancel()
        for process in processes:
            process.kill()
            process.communicate()


def _kill(processes: "list[subprocess.Popen[str]]") -> None:
    for process in processes:
        process.kill()


def _tell(process: "subprocess.Popen[str]", value: dict[str, Any]) -> None:
    if process.stdin is None:
        raise RuntimeError("the rank has no standard input")
    process.stdin.write(json.dumps(value) + "\n")
    process.stdin.flush()


def _hear(process: "subprocess.Popen[str]") -> dict[str, Any]:
    if process.stdout is None:
        raise RuntimeError("the rank has no standard output")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a rank ended with exit code {process.wait(10)} before it had measured")
    return cast("dict[str, Any]", json.loads(line))


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    columns = (
        "provider",
        "level",
        "operation",
        "ranks",
        "bytes",
        "p50_us",
        "p99_us",
        "gb_per_s",
        "cpu_seconds",
    )
    print("  ".join(f"{name:>11}" for name in columns))
    for row in rows:
        print("  ".join(f"{row.get(name, ''):>11}" for name in columns))


if __name__ == "__main__":
    main()
