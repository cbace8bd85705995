"""One of the two processes of `macmesh_rdma.sync.self_test`."""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import cast

import mlx.core as mx

OpenPair = Callable[[int, str], "mx.distributed.Group"]
"""Given the rank and the path of a file with both ranks' addresses (MLX's host list), opens a group of two."""


def open_ring_pair(rank: int, hosts: str) -> "mx.distributed.Group":
    """A pair over MLX's stock ring."""
    os.environ["MLX_HOSTFILE"], os.environ["MLX_RANK"] = hosts, str(rank)
    return mx.distributed.init(strict=True, backend="ring")


class Hopper:
    """Passes an array to and fro; each side adds one on the default device."""

    def __init__(self, group: "mx.distributed.Group") -> None:
        self._group = group
        self._rank = group.rank()
        # A receive has no inputs: on a stream shared with sends it could run before the send that it follows.
        self._send_stream = mx.new_stream(mx.cpu)
        self._receive_stream = mx.new_stream(mx.cpu)

    def run(self, hops: int, elements: int, *, wait: bool) -> tuple[float, str]:
        """Seconds for so many hops each way, and what arrived wrong.

        Args:
            hops: round trips.
            elements: numbers in a message.
            wait: the host waits for each hop; else all of them are queued, and it waits once.
        """
        x = mx.zeros((elements,), mx.float32)
        mx.eval(x)
        began = time.monotonic()
        for _ in range(hops):
            if self._rank == 0:
                self._send(x, wait=wait)
            x = mx.distributed.recv(
                (elements,), mx.float32, 1 - self._rank, group=self._group, stream=self._receive_stream
            )
            x = x + 1
            if self._rank == 1:
                self._send(x, wait=wait)
            elif wait:
                mx.eval(x)
            else:
                # In the order of the hops: nothing else orders one receive after another.
                mx.async_eval(x)  # type: ignore[no-untyped-call]  # the stub gives no types
        mx.eval(x)
        mx.synchronize(self._send_stream)
        seconds = time.monotonic() - began
        expected = 2 * hops if self._rank == 0 else 2 * hops - 1
        low, high = float(x.min().item()), float(x.max().item())  # type: ignore[arg-type]  # real numbers only
        wrong = "" if low == high == expected else f"expected {expected} everywhere, got {low} to {high}"
        return seconds, wrong

    def _send(self, x: mx.array, *, wait: bool) -> None:
        sent = mx.distributed.send(x, 1 - self._rank, group=self._group, stream=self._send_stream)
        if wait:
            mx.eval(sent)
        else:
            mx.async_eval(sent)  # type: ignore[no-untyped-call]  # the stub gives no types


def main() -> None:
    """Measures, and prints the result where it is rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--hosts", required=True)
    parser.add_argument("--open-pair", required=True, help="module:function")
    parser.add_argument("--hops", type=int, required=True)
    parser.add_argument("--elements", type=int, required=True)
    options = parser.parse_args()
    module, _, function = options.open_pair.partition(":")
    open_pair = cast("OpenPair", getattr(importlib.import_module(module), function))
    hopper = Hopper(open_pair(options.rank, options.hosts))
    hopper.run(5, options.elements, wait=True)
    chained, wrong = hopper.run(options.hops, options.elements, wait=False)
    evaluated, wrong_too = hopper.run(options.hops, options.elements, wait=True)
    if options.rank == 0:
        json.dump(
            {
                "chained_us": chained / (2 * options.hops) * 1e6,
                "evaluated_us": evaluated / (2 * options.hops) * 1e6,
                "wrong": wrong or wrong_too,
            },
            sys.stdout,
        )
        sys.stdout.flush()
    # MLX's threads may wait for a peer that has gone.
    os._exit(0)


if __name__ == "__main__":
    main()
