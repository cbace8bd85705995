"""Latency and bandwidth of host transfers. Imports mlx."""

import time
from collections.abc import Callable

import mlx.core as mx

from macmesh_rdma.bench.rows import Row, flood_count, percentiles, repeats
from macmesh_rdma.group import Group
from macmesh_rdma.group_host_lane import GroupHostLane

#: A token's worth of bytes as a message; one decoded token's hidden state and a prefill chunk as arrays.
_MESSAGE_BYTES = 64
_ARRAY_SIZES_BYTES = (6 * 1024, 12 * 1024 * 1024)
_DEADLINE_SECONDS = 60.0


class HostMeasured:
    """One rank's part.

    Args:
        group: A group of two.
        provider: Its name in the rows.
        quick: Fewer repeats.
    """

    def __init__(self, group: Group, provider: str, *, quick: bool) -> None:
        self._lane = GroupHostLane(group)
        self._first = group.rank == 0
        self._peer = 1 - group.rank
        self._provider = provider
        self._quick = quick

    def rows(self) -> list[Row]:
        """Messages and arrays; from rank 0."""
        data = bytes(_MESSAGE_BYTES)
        found = [
            self._measured(
                "message",
                _MESSAGE_BYTES,
                lambda: self._lane.send_message(self._peer, data, _DEADLINE_SECONDS),
                lambda: self._lane.receive_message(self._peer, _DEADLINE_SECONDS),
            )
        ]
        for size_bytes in _ARRAY_SIZES_BYTES:
            given, into = mx.zeros(size_bytes // 2, mx.bfloat16), mx.zeros(size_bytes // 2, mx.bfloat16)
            mx.eval(given, into)
            found.append(
                self._measured(
                    "send",
                    size_bytes,
                    lambda given=given: self._lane.send(self._peer, [given], _DEADLINE_SECONDS),  # type: ignore[misc]  # bound
                    lambda into=into: self._lane.receive_into(self._peer, [into], _DEADLINE_SECONDS),  # type: ignore[misc]  # bound
                )
            )
        return found if self._first else []

    def _measured(
        self, operation: str, size_bytes: int, send: Callable[[], None], receive: Callable[[], object]
    ) -> Row:
        count = 10 + repeats(size_bytes, quick=self._quick)
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            if self._first:
                send()
                receive()
            else:
                receive()
                send()
            seconds.append((time.perf_counter() - began) / 2)
        floods = flood_count(size_bytes, quick=self._quick)
        began = time.perf_counter()
        for _ in range(floods):
            if self._first:
                send()
            else:
                receive()
        if self._first:
            self._lane.receive_message(self._peer, _DEADLINE_SECONDS)
        else:
            self._lane.send_message(self._peer, b"", _DEADLINE_SECONDS)
        speed = size_bytes * floods / (time.perf_counter() - began) / 1e9
        p50, p99 = percentiles(seconds[10:])
        return Row(self._provider, "host", operation, 2, size_bytes, p50, p99, round(speed, 3))
