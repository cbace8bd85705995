"""Transfers as in a graph, done as soon as they are described; for ranks in memory. Imports mlx."""

import contextlib
from collections.abc import Sequence

import mlx.core as mx

from macmesh_rdma.errors import LocalLaneStateError
from macmesh_rdma.graph_lane import Facts, GraphLane
from macmesh_rdma.host_lane import HostLane
from macmesh_rdma.testing.memory_host_lane import memory_host_lanes


class HostGraphLane(GraphLane):
    """A graph lane over host transfers, in the order of the descriptions.

    Args:
        host: what carries it; closed and aborted with the lane.
        timeout_seconds: of each transfer.
    """

    name = "host"
    reads_apart = False

    def __init__(self, host: HostLane, timeout_seconds: float) -> None:
        self._host = host
        self._timeout_seconds = timeout_seconds

    def receive(self, peer: int, facts: Sequence[Facts]) -> list[mx.array]:
        """See `GraphLane.receive`."""
        arrays = [mx.zeros(shape, dtype) for shape, dtype in facts]
        _require(arrays)
        mx.eval(arrays)
        self._host.receive_into(peer, arrays, self._timeout_seconds)
        return arrays

    def send(self, peer: int, arrays: Sequence[mx.array]) -> mx.array:
        """See `GraphLane.send`."""
        _require(arrays)
        given = [mx.contiguous(array) for array in arrays]
        mx.eval(given)
        self._host.send(peer, given, self._timeout_seconds)
        return given[-1]

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """See `GraphLane.guarded`."""
        return contextlib.nullcontext()

    def flush(self, peer: int) -> None:
        """See `GraphLane.flush`."""

    def drain(self, peer: int) -> None:
        """See `GraphLane.drain`."""

    def abort(self, reason: str) -> None:
        """See `GraphLane.abort`."""
        self._host.abort(reason)

    def close(self) -> None:
        """See `GraphLane.close`."""
        self._host.close()


def _require(arrays: Sequence[mx.array]) -> None:
    if not arrays:
        raise LocalLaneStateError("a payload has one array or more")


def memory_graph_lanes(size: int, timeout_seconds: float) -> list[HostGraphLane]:
    """The lanes of that many ranks, which are threads of one process."""
    return [HostGraphLane(lane, timeout_seconds) for lane in memory_host_lanes(size)]
