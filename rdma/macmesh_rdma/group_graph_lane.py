"""Transfers inside MLX's graphs over a group of our own. Imports mlx."""

import contextlib
from collections.abc import Iterator, Sequence

import mlx.core as mx

from macmesh_rdma.errors import LocalLaneStateError
from macmesh_rdma.graph_lane import Facts, GraphLane
from macmesh_rdma.group import Group
from macmesh_rdma.streams import transfer_streams


class GroupGraphLane(GraphLane):
    """Sends and receives of `mlx.core.distributed`, each on a CPU stream of their own.

    A receive has no inputs: on a stream shared with sends, or with what is computed, it could be queued before the send
    that it logically follows, and both ranks would wait for ever. Every transfer depends on the one before it in its
    direction, which keeps the order where MLX encodes several of them together.

    Args:
        group: what carries it; aborted and closed with the lane.
        receive_seconds: deadline of a receive; by default the group's.
    """

    name = "group"
    reads_apart = False

    def __init__(self, group: Group, *, receive_seconds: float | None = None) -> None:
        self.group = group
        """What carries it."""
        if receive_seconds is not None:
            group.receive_timeout_seconds = receive_seconds
        self._send_stream, self._receive_stream = transfer_streams()
        self._sent: dict[int, mx.array] = {}
        self._received: dict[int, mx.array] = {}
        self._closed = False

    def receive(self, peer: int, facts: Sequence[Facts]) -> list[mx.array]:
        """See `GraphLane.receive`."""
        self._require(peer, len(facts))
        arrays = []
        for shape, dtype in facts:
            made = mx.distributed.recv(shape, dtype, peer, group=self.group.mlx, stream=self._receive_stream)
            before = self._received.get(peer)
            if before is not None:
                # The one before comes first because only what is returned here is ever used of this one.
                with mx.stream(self._receive_stream):
                    made = mx.depends(made, before)
            self._received[peer] = made
            arrays.append(made)
        return arrays

    def send(self, peer: int, arrays: Sequence[mx.array]) -> mx.array:
        """See `GraphLane.send`."""
        self._require(peer, len(arrays))
        for array in arrays:
            before, given = self._sent.get(peer), array
            if before is not None:
                with mx.stream(self._send_stream):
                    given = mx.depends(array, before)
            self._sent[peer] = mx.distributed.send(
                given, peer, group=self.group.mlx, stream=self._send_stream
            )
        return self._sent[peer]

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """See `GraphLane.guarded`."""
        try:
            yield
        except RuntimeError as error:
            if self.group.failure is None and not self._closed:
                raise
            self.group.raise_failure(error)
        # MLX tells of an error once: whoever waits for the same array again gets what it holds by chance.
        failure = self.group.failure
        if failure is not None:
            raise failure

    def flush(self, peer: int) -> None:
        """See `GraphLane.flush`."""
        self._end(self._sent.pop(peer, None))

    def drain(self, peer: int) -> None:
        """See `GraphLane.drain`."""
        self._end(self._received.pop(peer, None))

    def abort(self, reason: str) -> None:
        """See `GraphLane.abort`."""
        self.group.abort(reason)

    def close(self) -> None:
        """See `GraphLane.close`."""
        self._closed = True
        self._sent.clear()
        self._received.clear()
        self.group.close()

    def _end(self, last: mx.array | None) -> None:
        if last is not None:
            with self.guarded():
                mx.eval(last)

    def _require(self, peer: int, arrays: int) -> None:
        if self._closed:
            raise LocalLaneStateError("the lane is closed")
        if peer == self.group.rank or not 0 <= peer < self.group.size:
            raise LocalLaneStateError(f"rank {self.group.rank} has no peer {peer}")
        if not arrays:
            raise LocalLaneStateError("a payload has one array or more")
