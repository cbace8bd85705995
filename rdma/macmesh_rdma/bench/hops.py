"""What a hop costs between the processors that compute: the GPU's, where MLX has one.

A hop is: compute, hand over to a CPU stream, send, receive in the other process, compute again. Measured twice: many
hops chained in one graph, as decoding does it, and with an evaluation for each hop. Beside them stand the same
crossings between the streams without any transport, and, on a GPU with PyTorch installed, bare copies to the host
and back.
"""

import time

import mlx.core as mx

from macmesh_rdma.bench.rows import Row, percentiles

#: One token's hidden state of models of 4 to 8 thousand units, and prefill chunks.
HOP_SIZES_BYTES = (6 * 1024, 64 * 1024, 1024 * 1024, 12 * 1024 * 1024)
_CHAINED = 16


class Hops:
    """One rank's part.

    Args:
        group: A group of two.
        provider: Its name in the rows.
        quick: Fewer repeats.
    """

    def __init__(self, group: mx.distributed.Group, provider: str, *, quick: bool) -> None:
        self._group = group
        self._provider = provider
        self._rank = group.rank()
        self._out = mx.new_stream(mx.cpu)
        self._in = mx.new_stream(mx.cpu)
        self._repeats = 20 if quick else 100

    def rows(self) -> list[Row]:
        """All sizes; from rank 0."""
        found = []
        for size_bytes in HOP_SIZES_BYTES:
            start = mx.zeros(size_bytes // 2, dtype=mx.bfloat16)
            mx.eval(start)
            repeats = self._repeats if size_bytes < 1 << 20 else self._repeats // 4
            for operation, measured in (("hop_chained", self._chained), ("hop_evaluated", self._evaluated)):
                for _ in range(3):
                    measured(start)
                p50, p99 = percentiles([measured(start) for _ in range(repeats)])
                found.append(Row(self._provider, "mlx", operation, 2, size_bytes, p50, p99))
        return found if self._rank == 0 else []

    def _chained(self, start: mx.array) -> float:
        """Seconds per hop of a ping-pong in one graph."""
        began = time.perf_counter()
        hidden = start
        for _ in range(_CHAINED):
            # A receive has no inputs, and MLX orders a graph by the distance from its outputs: only a chain
            # through the sends keeps the receives in their order.
            if self._rank == 0:
                sent = self._send(hidden + 1)
                hidden = mx.depends(self._receive(start), sent)
            else:
                hidden = mx.depends(self._receive(start), hidden)
                hidden = self._send(hidden + 1)
        mx.eval(hidden)
        seconds = (time.perf_counter() - began) / (2 * _CHAINED)
        # bfloat16 holds whole numbers up to 256 exactly: a receive out of turn would show.
        expected = 2 * _CHAINED
        if hidden[0].item() != expected:
            raise RuntimeError(f"rank {self._rank} ended with {hidden[0].item()} instead of {expected}")
        return seconds

    def _evaluated(self, start: mx.array) -> float:
        """Seconds per hop with an evaluation for each."""
        began = time.perf_counter()
        hidden = start
        for _ in range(_CHAINED):
            if self._rank == 0:
                mx.async_eval(self._send(hidden + 1))  # type: ignore[no-untyped-call]  # the stub gives no types
                hidden = self._receive(start)
                mx.eval(hidden)
            else:
                hidden = self._receive(start)
                mx.eval(hidden)
                mx.async_eval(self._send(hidden + 1))  # type: ignore[no-untyped-call]  # the stub gives no types
        mx.synchronize(self._out)
        return (time.perf_counter() - began) / (2 * _CHAINED)

    def _send(self, array: mx.array) -> mx.array:
        return mx.distributed.send(array, 1 - self._rank, group=self._group, stream=self._out)

    def _receive(self, like: mx.array) -> mx.array:
        return mx.distributed.recv_like(like, 1 - self._rank, group=self._group, stream=self._in)


def crossings(*, quick: bool) -> list[Row]:
    """To a CPU stream and back to the computing one, no transport: what MLX's own synchronisation costs."""
    rows = []
    stream = mx.new_stream(mx.cpu)
    for size_bytes in HOP_SIZES_BYTES:
        start = mx.zeros(size_bytes // 2, dtype=mx.bfloat16)
        mx.eval(start)
        seconds = []
        for _ in range(20 if quick else 100):
            began = time.perf_counter()
            hidden = start
            for _ in range(_CHAINED):
                hidden = mx.abs(hidden + 1, stream=stream)
            mx.eval(hidden + 1)
            seconds.append((time.perf_counter() - began) / _CHAINED)
        p50, p99 = percentiles(seconds)
        rows.append(Row("none", "mlx", "crossing", 1, size_bytes, p50, p99))
    return rows


def bare_copies(*, quick: bool) -> list[Row]:
    """To pinned host memory and back with PyTorch; nothing where there is no GPU or no PyTorch."""
    try:
        import torch  # type: ignore[import-not-found]  # noqa: PLC0415  only where it is installed
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    rows = []
    for size_bytes in HOP_SIZES_BYTES:
        here = torch.zeros(size_bytes, dtype=torch.uint8, device="cuda")
        host = torch.zeros(size_bytes, dtype=torch.uint8).pin_memory()
        seconds = []
        for _ in range(50 if quick else 500):
            torch.cuda.synchronize()
            began = time.perf_counter()
            host.copy_(here, non_blocking=True)
            torch.cuda.synchronize()
            here.copy_(host, non_blocking=True)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        p50, p99 = percentiles(seconds)
        rows.append(Row("cudaMemcpy", "raw", "copy", 1, size_bytes, p50, p99))
    return rows
