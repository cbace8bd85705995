"""The cost of one hop between two processes by host transfers, as stages decode with them.

    python bench/gpu_hop.py [--size N] [--device gpu|cpu] [--provider shm|tcp] [--hops N] [--devices A B]

Each process multiplies what it received by a few matrices, evaluates and sends the result on; the next step's graph
is described beforehand on a placeholder, whose memory the receive fills. Variants differ in where the placeholder
and the result lie:

* placeholder ``plain``: made on the default device; ``touched``: made on the CPU stream; ``host``: from host memory;
* result ``plain``: as it comes; ``cpu_copy``: copied on the CPU stream; ``staged``: written by the device into a
  buffer that was made in host memory, kept, and handed from step to step.

Prints JSON: for each variant microseconds per hop (p50, p99), of a step of compute alone in the same process, their
difference, and where the time of a hop went: evaluating, sending, receiving with the wait for the other process.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from macmesh_rdma.group import Group, open_group
from macmesh_rdma.group_host_lane import GroupHostLane
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener

KEY = b"a key for one measurement alone!"
SECONDS = 120.0
PLACEHOLDERS = ("plain", "touched", "host")
RESULTS = ("plain", "cpu_copy", "staged")
WARM_UP = 10


def percentile(seconds: list[float], share: float) -> float:
    """In microseconds, to a tenth."""
    ordered = sorted(seconds)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e6, 1)


def placeholder_of(kind: str, shape: tuple[int, ...]) -> mx.array:
    """An evaluated array of zeros."""
    if kind == "touched":
        array = mx.zeros(shape, mx.bfloat16) + mx.zeros(shape, mx.bfloat16)
        array = mx.add(array, mx.zeros(shape, mx.bfloat16, stream=mx.cpu), stream=mx.cpu)
    elif kind == "host":
        array = mx.array(np.zeros(shape, np.uint16)).view(mx.bfloat16)
    else:
        array = mx.zeros(shape, mx.bfloat16)
    mx.eval(array)
    return array


class Rank:
    """One process's part: some layers, and a lane to the other process."""

    def __init__(self, group: Group, size: int, layers: int) -> None:
        self._lane = GroupHostLane(group)
        self._first = group.rank == 0
        self._peer = 1 - group.rank
        self._size = size
        self._shape = (1, 1, size)
        keys = mx.random.split(mx.random.key(group.rank), layers)
        self._weights = [
            (mx.random.normal((size, size), key=k) / size**0.5).astype(mx.bfloat16) for k in keys
        ]
        mx.eval(self._weights)
        self._stage: mx.array | None = None

    def describe(self, hidden: mx.array, result: str) -> mx.array:
        """The step, not evaluated."""
        for weight in self._weights:
            hidden = mx.tanh(hidden @ weight)
        if result == "cpu_copy":
            return mx.multiply(hidden, mx.array(1, mx.bfloat16), stream=mx.cpu)
        if result == "staged":
            # A few elements more than the result, or the update would replace the buffer instead of filling it.
            stage, self._stage = self._stage, None
            if stage is None:
                stage = placeholder_of("host", (1, 1, self._size + 64))
            self._stage = mx.slice_update(stage, hidden, mx.array([0, 0, 0]), [0, 1, 2])
            return self._stage[:, :, : self._size]
        return hidden

    def compute_alone(self, hops: int, result: str) -> list[float]:
        """Seconds of each step without any transfer."""
        placeholder = placeholder_of("plain", self._shape)
        seconds = []
        for _ in range(WARM_UP + hops):
            described = self.describe(placeholder, result)
            began = time.perf_counter()
            mx.async_eval(described)  # type: ignore[no-untyped-call]  # the stub gives no types
            mx.eval(described)
            seconds.append(time.perf_counter() - began)
            del described
        self._stage = None
        return seconds[WARM_UP:]

    def compute_in_turn(self, hops: int, result: str) -> float:
        """Microseconds of a step alone, the mean of both processes, of which one computes at a time."""
        if not self._first:
            self._lane.receive_message(self._peer, SECONDS)
        mine = percentile(self.compute_alone(hops, result), 0.5)
        self._lane.send_message(self._peer, str(mine).encode(), SECONDS)
        if not self._first:
            return mine
        return round((mine + float(self._lane.receive_message(self._peer, SECONDS))) / 2, 1)

    def ping_pong(self, hops: int, placeholder_kind: str, result: str) -> dict[str, Any]:
        """Both processes in turn; a hop is half a round."""
        placeholder = placeholder_of(placeholder_kind, self._shape)
        spent: dict[str, list[float]] = {"hop": [], "describe": [], "evaluate": [], "send": [], "receive": []}

        def timed(name: str, call: Callable[[], Any]) -> Any:
            began = time.perf_counter()
            value = call()
            spent[name].append(time.perf_counter() - began)
            return value

        def evaluate(array: mx.array) -> None:
            mx.async_eval(array)  # type: ignore[no-untyped-call]  # the stub gives no types
            mx.eval(array)

        for step in range(WARM_UP + hops):
            began = time.perf_counter()
            described = timed("describe", lambda: self.describe(placeholder, result))
            if not self._first or step > 0:
                timed("receive", lambda: self._lane.receive_into(self._peer, [placeholder], SECONDS))
            timed("evaluate", functools.partial(evaluate, described))
            timed("send", functools.partial(self._lane.send, self._peer, [described], SECONDS))
            del described
            spent["hop"].append((time.perf_counter() - began) / 2)
        if self._first:
            self._lane.receive_into(self._peer, [placeholder], SECONDS)
        self._stage = None
        checksum: Any = mx.abs(placeholder.astype(mx.float32)).sum().item()
        if self._first and not 0 <= checksum < self._size + 1:
            raise RuntimeError(f"what came cannot be: its absolute sum is {checksum}")
        return {
            "p50_us": percentile(spent["hop"][WARM_UP:], 0.5),
            "p99_us": percentile(spent["hop"][WARM_UP:], 0.99),
            **{f"{name}_us": percentile(spent[name][WARM_UP:], 0.5) for name in spent if name != "hop"},
        }


def measure(group: Group, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All variants; both ranks in the same order."""
    rank = Rank(group, arguments.size, arguments.layers)
    rows = []
    for result in RESULTS:
        alone = rank.compute_in_turn(arguments.hops, result)
        for placeholder in PLACEHOLDERS:
            row = rank.ping_pong(arguments.hops, placeholder, result)
            added = round(row["p50_us"] - alone, 1)
            rows.append(
                {"placeholder": placeholder, "result": result, "compute_us": alone, "added_us": added, **row}
            )
    return rows


def run(rank: int, arguments: argparse.Namespace, theirs: "subprocess.Popen[str] | None") -> None:
    """One rank; rank 0 has started the other and prints."""
    mx.set_default_device(mx.gpu if arguments.device == "gpu" else mx.cpu)
    read, write = (theirs.stdout, theirs.stdin) if theirs else (sys.stdin, sys.stdout)
    if read is None or write is None:
        raise RuntimeError("the other process has no standard streams")
    with Listener("127.0.0.1", host_id="here") as listener:
        write.write(listener.endpoint.encode() + "\n")
        write.flush()
        other = Endpoint.decode(read.readline().strip())
        endpoints = [listener.endpoint, other] if rank == 0 else [other, listener.endpoint]
        with open_group(
            listener,
            rank,
            endpoints,
            key=KEY,
            epoch=(1, 1, 1),
            provider=arguments.provider,
            lanes=(0,),
            timeout_seconds=SECONDS,
            connect_seconds=SECONDS,
            measure=False,
        ) as group:
            rows = measure(group, arguments)
            # Nobody leaves before both are done.
            lane = GroupHostLane(group)
            lane.send_message(1 - rank, b"done", SECONDS)
            lane.receive_message(1 - rank, SECONDS)
    if theirs:
        told = {
            "benchmark": "gpu_hop",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "device": str(mx.default_device()),
            "provider": arguments.provider,
            "bytes": 2 * arguments.size,
            "layers": arguments.layers,
            "hops": arguments.hops,
            "rows": rows,
        }
        print(json.dumps(told, indent=1))


def main() -> None:
    """Start the other process and measure."""
    parser = argparse.ArgumentParser(description="the cost of one hop by host transfers")
    parser.add_argument("--size", type=int, default=6144, help="elements of the hidden state")
    parser.add_argument("--layers", type=int, default=4, help="matrices of each process")
    parser.add_argument("--device", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--devices", nargs=2, default=None, help="CUDA_VISIBLE_DEVICES of each process")
    parser.add_argument("--provider", default="shm", choices=("shm", "tcp"))
    parser.add_argument("--hops", type=int, default=300)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        run(1, arguments, None)
        return
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
            run(0, arguments, other)
        finally:
            other.kill()


if __name__ == "__main__":
    main()
