"""A tensor lane over a group of our own. Imports mlx."""

import collections
import contextlib
from collections.abc import Iterator, Sequence

import mlx.core as mx

from macmesh_rdma.errors import LocalLaneStateError
from macmesh_rdma.group import Group
from macmesh_rdma.lane import TensorLane
from macmesh_rdma.streams import transfer_streams

MAX_SENDS_IN_FLIGHT = 2


class GroupLane(TensorLane):
    """One stage's two ends of the pipeline: receives from rank - 1, sends to rank + 1.

    Args:
        group: the stages, head first; the lane owns it.
    """

    name = "group"
    interruptible = True

    def __init__(self, group: Group) -> None:
        self.group = group
        """What carries it."""
        # A receive has no inputs: on a stream shared with sends it could run before the send that it follows.
        self._send_stream, self._receive_stream = transfer_streams()
        self._sending: collections.deque[mx.array] = collections.deque()
        self._closed = False
        self._broken = ""

    def send(self, array: mx.array, timeout_seconds: float) -> None:
        """See `TensorLane.send`."""
        self._require_open()
        if self.group.rank + 1 == self.group.size:
            raise LocalLaneStateError("the tail has no next stage to send to")
        while len(self._sending) >= MAX_SENDS_IN_FLIGHT:
            self._finish_oldest(timeout_seconds)
        with self._guarded(timeout_seconds):
            sent = mx.distributed.send(
                array, self.group.rank + 1, group=self.group.mlx, stream=self._send_stream
            )
            mx.async_eval(sent)  # type: ignore[no-untyped-call]  # the stub gives no types
        self._sending.append(sent)

    def flush(self, timeout_seconds: float) -> None:
        """See `TensorLane.flush`."""
        self._require_open()
        while self._sending:
            self._finish_oldest(timeout_seconds)

    def receive(self, shape: Sequence[int], dtype: mx.Dtype, timeout_seconds: float) -> mx.array:
        """See `TensorLane.receive`."""
        self._require_open()
        if self.group.rank == 0:
            raise LocalLaneStateError("the head has no previous stage to receive from")
        with self._guarded(timeout_seconds):
            array = mx.distributed.recv(
                tuple(shape), dtype, self.group.rank - 1, group=self.group.mlx, stream=self._receive_stream
            )
            mx.eval(array)
        return array

    def close(self) -> None:
        """See `TensorLane.close`."""
        self._closed = True
        self.group.close()
        self._sending.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise LocalLaneStateError("the lane is closed")
        if self._broken:
            raise LocalLaneStateError(f"the lane broke before: {self._broken}; the stages must join anew")

    def _finish_oldest(self, timeout_seconds: float) -> None:
        with self._guarded(timeout_seconds):
            mx.eval(self._sending.popleft())

    @contextlib.contextmanager
    def _guarded(self, timeout_seconds: float) -> Iterator[None]:
        self.group.timeout_seconds = timeout_seconds
        try:
            yield
        except RuntimeError as error:
            self._broken = str(error)
            self.group.raise_failure(error)
