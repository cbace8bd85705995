"""Decode steps go from stage to stage inside MLX's graphs, prompts by the host. Imports mlx."""

from collections.abc import Callable, Sequence

import mlx.core as mx

from macmesh.v1 import lane_pb2
from macmesh_daemon.worker.transfers import Host, HostTransfers, Put
from macmesh_rdma.graph_lane import GraphLane


class GraphTransfers(HostTransfers):
    """What `GraphHeadRunner` and `GraphFollowerRunner` hand on.

    A part of a prompt is evaluated layer by layer and takes long: it goes by the host, which waits for it before
    anything is queued that needs it. Both lanes may use the same links, so whatever was queued in the graph towards or
    from a stage is ended first.

    Args:
        host: for prompts.
        graph: for decode steps, and what the tail samples.
        result: to the head: that a step is done which samples nothing.
        stage: ours.
        stages: how many.
        deadline_seconds: longest wait of the host.
    """

    fills = False

    def __init__(
        self,
        host: Host,
        graph: GraphLane,
        *,
        result: Callable[[lane_pb2.StepDone], None],
        stage: int,
        stages: int,
        deadline_seconds: float,
    ) -> None:
        super().__init__(host, stage, stages, deadline_seconds)
        self.graph = graph
        """For decode steps."""
        self.previous = (stage - 1) % stages
        """The stage before; of the head, the tail."""
        self.next = (stage + 1) % stages
        """The next stage; of the tail, the head."""
        self._result = result

    def receive(self, number: int) -> list[mx.array]:
        """See `Transfers.receive`."""
        self.graph.drain(self.previous)
        return super().receive(number)

    def receive_into(self, number: int, arrays: Sequence[mx.array]) -> None:
        """See `Transfers.receive_into`."""
        self.graph.drain(self.previous)
        super().receive_into(number, arrays)

    def send(self, number: int, arrays: Sequence[mx.array]) -> None:
        """See `Transfers.send`."""
        self.graph.flush(self.next)
        super().send(number, arrays)

    def send_result(self, done: lane_pb2.StepDone) -> None:
        """See `Transfers.send_result`: on the control lane, because the link may hold what was sampled before."""
        self._result(done)

    def abort(self, reason: str) -> bool:
        """See `Transfers.abort`."""
        self.graph.abort(reason)
        return super().abort(reason)

    def close(self) -> None:
        """See `Transfers.close`."""
        self.graph.close()
        super().close()

    def listen(self, put: Put) -> None:
        """Results come on the control lane, and in the graph."""
