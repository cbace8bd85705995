"""A tensor lane in memory, for stages that run as threads of one process."""

import queue
from collections.abc import Sequence

import mlx.core as mx

from macmesh_rdma.errors import (
    LocalLaneStateError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
)
from macmesh_rdma.lane import TensorLane

MAX_SENDS_IN_FLIGHT = 2
_Parcel = tuple[tuple[int, ...], mx.Dtype, bytes]


class MemoryLane(TensorLane):
    """One stage's ends of a pipeline in memory; made by `memory_lanes`. Counts what went through it."""

    name = "memory"
    interruptible = True

    def __init__(
        self,
        inbox: "queue.Queue[_Parcel | None] | None",
        outbox: "queue.Queue[_Parcel | None] | None",
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._closed = False
        self._broken = ""
        self.sent_bytes = 0
        """Bytes of the arrays sent so far."""

    def send(self, array: mx.array, timeout_seconds: float) -> None:
        """See `TensorLane.send`."""
        self._require_open()
        if self._outbox is None:
            raise LocalLaneStateError("the tail has no next stage to send to")
        # Bytes, not the array: an array belongs to the streams of the thread that made it.
        flat = mx.view(array.reshape(-1), mx.uint8)
        raw = bytes(memoryview(flat))  # type: ignore[arg-type]  # the stub omits the buffer protocol
        self.sent_bytes += len(raw)
        try:
            self._outbox.put((tuple(array.shape), array.dtype, raw), timeout=timeout_seconds)
        except queue.Full:
            self._broken = "a send was not taken"
            raise RemoteTimeoutError(
                f"the next stage took nothing for {timeout_seconds:g} s; it hangs or is gone"
            ) from None

    def flush(self, timeout_seconds: float) -> None:  # noqa: ARG002  nothing waits on the way
        """See `TensorLane.flush`."""
        self._require_open()

    def receive(self, shape: Sequence[int], dtype: mx.Dtype, timeout_seconds: float) -> mx.array:
        """See `TensorLane.receive`."""
        self._require_open()
        if self._inbox is None:
            raise LocalLaneStateError("the head has no previous stage to receive from")
        try:
            parcel = self._inbox.get(timeout=timeout_seconds)
        except queue.Empty:
            self._broken = "a receive timed out"
            raise RemoteTimeoutError(f"the previous stage sent nothing for {timeout_seconds:g} s") from None
        if parcel is None:
            self._broken = "the previous stage has gone"
            raise RemotePeerLostError("the previous stage has gone")
        got_shape, got_dtype, raw = parcel
        if got_shape != tuple(shape) or got_dtype != dtype:
            self._broken = "a mismatch"
            raise RemoteMismatchError(
                f"expected {tuple(shape)} {dtype}, the previous stage sent {got_shape} {got_dtype}"
            )
        flat = mx.array(memoryview(raw))  # type: ignore[arg-type]  # the stub omits the buffer protocol
        array = mx.view(flat, dtype).reshape(got_shape)
        mx.eval(array)
        return array

    def close(self) -> None:
        """See `TensorLane.close`. The next stage reads what is on its way, then finds its neighbour gone."""
        if not self._closed:
            self._closed = True
            if self._outbox is not None:
                # Beyond the bound on purpose: a closing lane must not wait.
                with self._outbox.mutex:
                    self._outbox.queue.append(None)
                    self._outbox.not_empty.notify()

    def _require_open(self) -> None:
        if self._closed:
            raise LocalLaneStateError("the memory lane is closed")
        if self._broken:
            raise LocalLaneStateError(f"the memory lane broke before: {self._broken}")


def memory_lanes(stage_count: int) -> list[MemoryLane]:
    """The lanes of a pipeline, head first; each belongs to the thread of its stage."""
    links: list[queue.Queue[_Parcel | None]] = [
        queue.Queue(maxsize=MAX_SENDS_IN_FLIGHT) for _ in range(stage_count - 1)
    ]
    return [
        MemoryLane(links[index - 1] if index > 0 else None, links[index] if index + 1 < stage_count else None)
        for index in range(stage_count)
    ]
