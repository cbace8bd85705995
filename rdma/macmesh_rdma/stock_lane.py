"""A tensor lane over a group of MLX's own, which cannot be interrupted. Imports mlx."""

import collections
import contextlib
from collections.abc import Iterator, Sequence

import mlx.core as mx

from macmesh_rdma.errors import LocalLaneStateError, RemotePeerLostError
from macmesh_rdma.lane import TensorLane
from macmesh_rdma.stall import StallWatch

MAX_SENDS_IN_FLIGHT = 2


class StockLane(TensorLane):
    """One stage's two ends of the pipeline: receives from rank - 1, sends to rank + 1.

    An operation after a failed one may hang for ever: an error breaks the lane.

    Args:
        name: of the backend.
        group: the stages, head first. Its resources stay with MLX until the process ends.
        watch: ends the process where a wait takes too long; closed with the lane.
        one_stream: sends and receives are made by one thread, in the order of the calls. Else each have their own,
            and a receive may wait while something sent before it has not gone yet.
    """

    interruptible = False

    def __init__(
        self, name: str, group: mx.distributed.Group, watch: StallWatch, *, one_stream: bool = False
    ) -> None:
        self.name = name
        self._group: mx.distributed.Group | None = group
        self._rank = group.rank()
        self._size = group.size()
        self._watch = watch
        self._send_stream = mx.new_stream(mx.cpu)
        # A receive has no inputs: on a stream shared with sends that are evaluated together with it, it could run
        # before the send that it follows.
        self._receive_stream = self._send_stream if one_stream else mx.new_stream(mx.cpu)
        self._sending: collections.deque[mx.array] = collections.deque()
        self.broken = ""
        """Why nothing can be sent or received any more; empty while all is well."""

    def send(self, array: mx.array, timeout_seconds: float) -> None:
        """See `TensorLane.send`."""
        group = self._require_group()
        if self._rank + 1 == self._size:
            raise LocalLaneStateError("the tail has no next stage to send to")
        while len(self._sending) >= MAX_SENDS_IN_FLIGHT:
            self._finish_oldest(timeout_seconds)
        with self._guarded(timeout_seconds, "queueing a send"):
            sent = mx.distributed.send(array, self._rank + 1, group=group, stream=self._send_stream)
            mx.async_eval(sent)  # type: ignore[no-untyped-call]  # the stub gives no types
        self._sending.append(sent)

    def flush(self, timeout_seconds: float) -> None:
        """See `TensorLane.flush`."""
        self._require_group()
        while self._sending:
            self._finish_oldest(timeout_seconds)

    def receive(self, shape: Sequence[int], dtype: mx.Dtype, timeout_seconds: float) -> mx.array:
        """See `TensorLane.receive`."""
        group = self._require_group()
        if self._rank == 0:
            raise LocalLaneStateError("the head has no previous stage to receive from")
        what = f"receiving {tuple(shape)} {dtype} from stage {self._rank - 1}"
        with self._guarded(timeout_seconds, what):
            array = mx.distributed.recv(
                tuple(shape), dtype, self._rank - 1, group=group, stream=self._receive_stream
            )
            mx.eval(array)
        return array

    def close(self) -> None:
        """See `TensorLane.close`."""
        if self._group is not None:
            self._group = None
            self._sending.clear()
            self._watch.close()

    def _require_group(self) -> mx.distributed.Group:
        if self._group is None:
            raise LocalLaneStateError(f"the {self.name} lane is closed")
        if self.broken:
            raise LocalLaneStateError(
                f"the {self.name} lane broke before: {self.broken}; start the worker anew"
            )
        return self._group

    def _finish_oldest(self, timeout_seconds: float) -> None:
        with self._guarded(timeout_seconds, f"sending to stage {self._rank + 1}"):
            mx.eval(self._sending.popleft())

    @contextlib.contextmanager
    def _guarded(self, timeout_seconds: float, what: str) -> Iterator[None]:
        try:
            with self._watch.limit(timeout_seconds, f"{self.name}: {what}"):
                yield
        except RuntimeError as error:
            self.broken = str(error)
            raise RemotePeerLostError(f"stage {self._rank}, {self.name}: {what}: {error}") from error
