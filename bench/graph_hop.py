"""Transfers inside MLX's graphs between two processes: do they keep their word, and what does a hop cost?

    python bench/graph_hop.py --lane cuda --devices 0 1      two CUDA GPUs of one machine
    python bench/graph_hop.py --lane group --device gpu      two processes on one Mac
    python bench/graph_hop.py --lane group --device cpu

Runs the checks that every graph lane has to pass (`macmesh_rdma.testing.graph_contract`), each with a fresh lane, then
a ring of two: each process multiplies what it received by some matrices and sends it on. `graph` queues each step
before the one before it has ended, `host` evaluates each step and moves it by the host. `alone` is the sum of what one
process needs for both parts, queued ahead. Prints JSON and exits with 1 where a check failed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from macmesh_rdma.cuda_set_up import open_cuda_graph_lane
from macmesh_rdma.graph_lane import GraphLane
from macmesh_rdma.group import Group, open_group
from macmesh_rdma.group_graph_lane import GroupGraphLane
from macmesh_rdma.group_host_lane import GroupHostLane
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.testing.graph_contract import (
    BUFFERS,
    CHECKS,
    MOST_PAYLOAD_BYTES,
    RECEIVE_SECONDS,
)
from macmesh_rdma.testing.host_kernels import HostKernels

KEY = b"a key for one measurement alone!"
SECONDS = 120.0
WARM_UP = 10
AHEAD = 2


class Rank:
    """One of the two processes."""

    def __init__(self, rank: int, listener: Listener, other: Endpoint, arguments: argparse.Namespace) -> None:
        self.rank = rank
        self._listener = listener
        self._endpoints = [listener.endpoint, other] if rank == 0 else [other, listener.endpoint]
        self._arguments = arguments
        self._kernels = HostKernels() if arguments.lane == "kernels" else None
        size = arguments.size
        keys = mx.random.split(mx.random.key(rank), arguments.layers)
        self._weights = [
            (mx.random.normal((size, size), key=key) / size**0.5).astype(mx.bfloat16) for key in keys
        ]
        mx.eval(self._weights)

    @contextmanager
    def group(self, name: str) -> Iterator[Group]:
        """A fresh group of both."""
        with open_group(
            self._listener,
            self.rank,
            self._endpoints,
            key=KEY,
            epoch=(1, 1, 1),
            name=name,
            provider=self._arguments.provider,
            lanes=(0,),
            timeout_seconds=SECONDS,
            connect_seconds=SECONDS,
            measure=False,
        ) as group:
            yield group

    def lane(self, group: Group, receive_seconds: float, payload_bytes: int) -> GraphLane:
        """A fresh lane over it."""
        if self._arguments.lane == "group":
            return GroupGraphLane(group, receive_seconds=receive_seconds)
        return open_cuda_graph_lane(
            GroupHostLane(group),
            self.rank,
            2,
            payload_bytes=payload_bytes,
            buffers=BUFFERS,
            receive_seconds=receive_seconds,
            set_up_seconds=SECONDS,
            failure=lambda: group.failure,
            kernels=self._kernels,
        )

    def check(self, name: str) -> str:
        """Runs one check; what went wrong, or nothing."""
        seconds = RECEIVE_SECONDS if name == "waits_no_longer_than_its_deadline" else SECONDS
        with self.group(name) as group:
            lane = self.lane(group, seconds, MOST_PAYLOAD_BYTES)
            try:
                CHECKS[name](lane, self.rank)
            except Exception as error:  # noqa: BLE001  told at the end
                return "".join(traceback.format_exception(error))
            finally:
                lane.close()
        return ""

    def measure(self) -> dict[str, float]:
        """Microseconds per step of both parts, three ways."""
        with self.group("measure") as group:
            lane = self.lane(group, SECONDS, 2 * self._arguments.size)
            in_graph = self._in_graph(lane)
            lane.flush(1 - self.rank)
            lane.drain(1 - self.rank)
            host = self._by_host(GroupHostLane(group))
            alone = self._alone()
            GroupHostLane(group).send_message(1 - self.rank, str(alone).encode(), SECONDS)
            theirs = float(GroupHostLane(group).receive_message(1 - self.rank, SECONDS))
            lane.close()
        return {
            "graph_us": round(in_graph, 1),
            "host_us": round(host, 1),
            "alone_us": round(alone + theirs, 1),
            "graph_adds_us_per_hop": round((in_graph - alone - theirs) / 2, 1),
            "host_adds_us_per_hop": round((host - alone - theirs) / 2, 1),
        }

    def _part(self, hidden: mx.array) -> mx.array:
        for weight in self._weights:
            hidden = mx.tanh(hidden @ weight)
        return hidden

    def _start(self) -> mx.array:
        return mx.ones((1, 1, self._arguments.size), mx.bfloat16)

    def _in_graph(self, lane: GraphLane) -> float:
        facts = [((1, 1, self._arguments.size), mx.bfloat16)]
        ends, queued = [], []
        for step in range(WARM_UP + self._arguments.hops):
            with lane.guarded():
                hidden = (
                    self._start() if self.rank == 0 and not step else lane.receive(1 - self.rank, facts)[0]
                )
                sent = lane.send(1 - self.rank, [self._part(hidden)])
                mx.async_eval(sent)  # type: ignore[no-untyped-call]  # the stub gives no types
                queued.append(sent)
                if len(queued) > AHEAD:
                    mx.eval(queued.pop(0))
                    ends.append(time.perf_counter())
        with lane.guarded():
            if self.rank == 0:
                mx.eval(lane.receive(1, facts))
            mx.eval(queued)
        return _median_us(ends)

    def _by_host(self, lane: GroupHostLane) -> float:
        placeholder, ends = mx.zeros((1, 1, self._arguments.size), mx.bfloat16), []
        mx.eval(placeholder)
        for step in range(WARM_UP + self._arguments.hops):
            described = mx.contiguous(self._part(placeholder))
            if self.rank or step:
                lane.receive_into(1 - self.rank, [placeholder], SECONDS)
            mx.eval(described)
            lane.send(1 - self.rank, [described], SECONDS)
            ends.append(time.perf_counter())
        if self.rank == 0:
            lane.receive_into(1, [placeholder], SECONDS)
        return _median_us(ends)

    def _alone(self) -> float:
        hidden, ends = self._start(), []
        queued = [hidden]
        for _ in range(WARM_UP + self._arguments.hops):
            hidden = self._part(hidden)
            mx.async_eval(hidden)  # type: ignore[no-untyped-call]  # the stub gives no types
            queued.append(hidden)
            if len(queued) > AHEAD:
                mx.eval(queued.pop(0))
                ends.append(time.perf_counter())
        mx.eval(queued)
        return _median_us(ends)


def _median_us(ends: list[float]) -> float:
    spent = sorted(after - before for before, after in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False))
    return spent[len(spent) // 2] * 1e6


def run(rank: int, arguments: argparse.Namespace, theirs: "subprocess.Popen[str] | None") -> bool:
    """One rank; rank 0 has started the other and prints. Whether all is well."""
    mx.set_default_device(mx.gpu if arguments.device == "gpu" else mx.cpu)
    read, write = (theirs.stdout, theirs.stdin) if theirs else (sys.stdin, sys.stdout)
    if read is None or write is None:
        raise RuntimeError("the other process has no standard streams")
    with Listener("127.0.0.1", host_id="here") as listener:
        write.write(listener.endpoint.encode() + "\n")
        write.flush()
        this = Rank(rank, listener, Endpoint.decode(read.readline().strip()), arguments)
        failed: dict[str, str] = {}
        for name in CHECKS:
            began = time.perf_counter()
            if problem := this.check(name):
                failed[name] = problem
            print(
                f"rank {rank}: {name}: {'FAILED' if problem else 'ok'}, {time.perf_counter() - began:.1f} s",
                file=sys.stderr,
                flush=True,
            )
        told: dict[str, Any] = {} if arguments.contract else this.measure()
        if theirs:
            failed |= {f"rank 1: {name}": problem for name, problem in json.loads(read.readline()).items()}
        else:
            write.write(json.dumps(failed) + "\n")
            write.flush()
            return not failed
    result = {
        "benchmark": "graph_hop",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": str(mx.default_device()),
        "lane": arguments.lane,
        "bytes": 2 * arguments.size,
        "layers": arguments.layers,
        "hops": arguments.hops,
        "checks": len(CHECKS),
        "failed": failed,
        **told,
    }
    print(json.dumps(result, indent=1))
    return not failed


def main() -> None:
    """Start the other process, check and measure."""
    parser = argparse.ArgumentParser(description="transfers inside MLX's graphs, checked and measured")
    parser.add_argument("--lane", choices=("group", "cuda", "kernels"), default="group")
    parser.add_argument("--size", type=int, default=4096, help="elements of the hidden state")
    parser.add_argument("--layers", type=int, default=8, help="matrices of each process")
    parser.add_argument("--device", default=None, choices=("gpu", "cpu"))
    parser.add_argument("--devices", nargs=2, default=None, help="CUDA_VISIBLE_DEVICES of each process")
    parser.add_argument("--provider", default="shm", choices=("shm", "tcp"))
    parser.add_argument("--hops", type=int, default=300)
    parser.add_argument("--contract", action="store_true", help="only the checks")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.device = arguments.device or ("gpu" if arguments.lane == "cuda" else "cpu")
    if arguments.rank:
        raise SystemExit(0 if run(1, arguments, None) else 1)
    environment = dict(os.environ)
    if arguments.devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = arguments.devices[0]
        environment["CUDA_VISIBLE_DEVICES"] = arguments.devices[1]
    with subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--rank", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as other:
        try:
            good = run(0, arguments, other)
        finally:
            other.kill()
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
