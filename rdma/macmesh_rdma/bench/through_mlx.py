"""Latency and bandwidth of a group through `mlx.core.distributed`, ours or MLX's own, by the same code."""

import time

import mlx.core as mx

from macmesh_rdma.bench.rows import SIZES_BYTES, Row, flood_count, percentiles, repeats

#: How late the late peer is.
LATE_SECONDS = 2.0


class Measured:
    """One rank's part of the measurements over a group.

    Args:
        group: The group; of at least two ranks.
        provider: Its name in the rows.
        quick: Fewer repeats.
    """

    def __init__(self, group: mx.distributed.Group, provider: str, *, quick: bool) -> None:
        self._group = group
        self._provider = provider
        self._quick = quick
        self._rank = group.rank()
        self._out = mx.new_stream(mx.cpu)
        # Each operation is evaluated before the next one here, so that one stream will do.
        self._in = self._out

    def sends(self) -> list[Row]:
        """One-way latency and bandwidth between ranks 0 and 1; the rows come from rank 0."""
        return self._sends("send")

    def sends_apart(self) -> list[Row]:
        """The same with a stream for sends and one for receives, as where a graph holds several of each."""
        self._in = mx.new_stream(mx.cpu)
        try:
            return self._sends("send_apart")
        finally:
            self._in = self._out

    def _sends(self, operation: str) -> list[Row]:
        rows = []
        for size_bytes in SIZES_BYTES:
            array = mx.zeros(size_bytes, dtype=mx.uint8)
            mx.eval(array)
            self._pings(array, 10)
            seconds = self._pings(array, repeats(size_bytes, quick=self._quick))
            speed = self._flood(array, flood_count(size_bytes, quick=self._quick))
            if self._rank == 0:
                p50, p99 = percentiles(seconds)
                rows.append(Row(self._provider, "mlx", operation, 2, size_bytes, p50, p99, round(speed, 3)))
        return rows

    def all_sums(self) -> list[Row]:
        """Time of an all_sum of float32 over all ranks; the rows come from rank 0."""
        rows = []
        for size_bytes in SIZES_BYTES:
            array = mx.ones(size_bytes // 4, dtype=mx.float32)
            mx.eval(array)
            seconds = []
            for _ in range(5 + repeats(size_bytes, quick=self._quick) // 2):
                began = time.perf_counter()
                mx.eval(mx.distributed.all_sum(array, group=self._group, stream=self._out))
                seconds.append(time.perf_counter() - began)
            if self._rank == 0:
                p50, p99 = percentiles(seconds[5:])
                size = self._group.size()
                rows.append(Row(self._provider, "mlx", "all_sum", size, size_bytes, p50, p99))
        return rows

    def late_peer(self) -> list[Row]:
        """Processor time that rank 0 spends while rank 1 is late."""
        token = mx.zeros(1, dtype=mx.uint32)
        if self._rank == 1:
            time.sleep(LATE_SECONDS)
            self._send(token)
            mx.eval(self._receive(token))
            return []
        busy = time.process_time()
        mx.eval(self._receive(token))
        busy = time.process_time() - busy
        mx.eval(self._send(token))
        return [Row(self._provider, "mlx", "wait", 2, 4, cpu_seconds=round(busy, 4))]

    def _send(self, array: mx.array) -> mx.array:
        sent = mx.distributed.send(array, 1 - self._rank, group=self._group, stream=self._out)
        mx.async_eval(sent)  # type: ignore[no-untyped-call]  # the stub gives no types
        return sent

    def _receive(self, like: mx.array) -> mx.array:
        return mx.distributed.recv_like(like, 1 - self._rank, group=self._group, stream=self._in)

    def _pings(self, array: mx.array, count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            if self._rank == 0:
                self._send(array)
                mx.eval(self._receive(array))
            else:
                mx.eval(self._receive(array))
                self._send(array)
            seconds.append((time.perf_counter() - began) / 2)
        mx.synchronize(self._out)
        return seconds

    def _flood(self, array: mx.array, count: int) -> float:
        """Bytes per second one way, in 10^9: messages in a row, one answer at the end."""
        token = mx.zeros(1, dtype=mx.uint32)
        mx.eval(token)
        began = time.perf_counter()
        if self._rank == 0:
            for _ in range(count):
                mx.eval(self._send(array))
            mx.eval(self._receive(token))
        else:
            for _ in range(count):
                mx.eval(self._receive(array))
            mx.eval(self._send(token))
        return array.nbytes * count / (time.perf_counter() - began) / 1e9
