"""ClusterService: seeing and changing the cluster, on any node."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from google.protobuf import timestamp_pb2

from macmesh.v1 import cluster_pb2, cluster_pb2_grpc, peer_pb2
from macmesh_daemon.node.call_errors import CallError, abort
from macmesh_daemon.node.codec import to_proto
from macmesh_daemon.node.loading import follow_load
from macmesh_daemon.node.stage_stats import stage_stats
from macmesh_daemon.node.status import status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from macmesh_daemon.node.bulletin import Bulletin
    from macmesh_daemon.node.runtime import Node

#: How often a watcher's status is compared with what it was told last.
STATUS_INTERVAL_SECONDS = 0.5


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """Answers from this node's view; hands changes to the coordinator."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def GetStatus(
        self, request: cluster_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cluster_pb2.GetStatusResponse:
        """The cluster as this node sees it now."""
        del request, context
        return await status_of(self._node)

    async def WatchCluster(
        self, request: cluster_pb2.WatchClusterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[cluster_pb2.WatchClusterResponse]:
        """The status, then every decision, and the status again when it has changed, at most twice a second."""
        del request, context
        clock = self._node.clock
        with self._node.board.watcher() as watcher:
            told = await status_of(self._node)
            yield cluster_pb2.WatchClusterResponse(status=told)
            look_at = clock.now() + STATUS_INTERVAL_SECONDS
            while True:
                bulletin = await watcher.next(max(0.0, look_at - clock.now()))
                if bulletin is not None:
                    yield cluster_pb2.WatchClusterResponse(event=_event(bulletin))
                if clock.now() >= look_at:
                    look_at = clock.now() + STATUS_INTERVAL_SECONDS
                    status = await status_of(self._node)
                    if _lasting(status) != _lasting(told):
                        yield cluster_pb2.WatchClusterResponse(status=status)
                        told = status

    async def PlanModel(
        self, request: cluster_pb2.PlanModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cluster_pb2.PlanModelResponse:
        """A dry run over the members that live now."""
        try:
            feasible, result_json = await self._node.planning.dry_run(request, self._node.driver.view)
        except CallError as error:
            await abort(context, error)
        return cluster_pb2.PlanModelResponse(feasible=feasible, result_json=result_json)

    async def LoadModel(
        self, request: cluster_pb2.LoadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[cluster_pb2.LoadModelResponse]:
        """Load a model and stream the progress until every stage is ready."""
        try:
            yield cluster_pb2.LoadModelResponse(phase="profiling")
            wanted = await self._node.planning.wanted(request, self._node.driver.view)
            yield cluster_pb2.LoadModelResponse(phase="planning")
            epoch = await self._node.changes.load(wanted)
            deadline_seconds = context.time_remaining()
            async for response in follow_load(
                self._node.driver, epoch, math.inf if deadline_seconds is None else deadline_seconds
            ):
                yield response
        except CallError as error:
            await abort(context, error)

    async def UnloadModel(
        self, request: cluster_pb2.UnloadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cluster_pb2.UnloadModelResponse:
        """Serve nothing."""
        del request
        try:
            epoch = await self._node.changes.unload()
        except CallError as error:
            await abort(context, error)
        return cluster_pb2.UnloadModelResponse(epoch=to_proto(epoch))

    async def DrainNode(
        self, request: cluster_pb2.DrainNodeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cluster_pb2.DrainNodeResponse:
        """Have a node serve no stage, or let it again; answers once that is committed."""
        change = peer_pb2.DrainChange(
            node_id=request.node_id, undo=request.undo, force=request.force, leave=request.leave
        )
        try:
            seq = await self._node.changes.drain(change)
        except CallError as error:
            await abort(context, error)
        return cluster_pb2.DrainNodeResponse(document_seq=seq)

    async def DrillFault(
        self, request: cluster_pb2.DrillFaultRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cluster_pb2.DrillFaultResponse:
        """Make a fault, here or where it is meant for."""
        try:
            done = await self._node.drills.make(request.kind, request.node_id)
        except CallError as error:
            await abort(context, error)
        return cluster_pb2.DrillFaultResponse(done=done)

    async def GetStageStats(
        self, request: cluster_pb2.GetStageStatsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cluster_pb2.GetStageStatsResponse:
        """Memory and time of every stage, asked of their workers now."""
        del request
        try:
            return await stage_stats(self._node)
        except CallError as error:
            await abort(context, error)


def _lasting(status: cluster_pb2.GetStatusResponse) -> bytes:
    """The status without what differs at every heartbeat and with every token: round trips, and counts of steps."""
    kept = cluster_pb2.GetStatusResponse()
    kept.CopyFrom(status)
    for node in kept.nodes:
        node.ClearField("heartbeat_ms")
    kept.ClearField("schedule_age_seconds")
    kept.ClearField("unserved_seconds")
    if kept.HasField("schedule"):
        kept.schedule.ClearField("steps")
        kept.schedule.ClearField("generated_tokens")
    return kept.SerializeToString(deterministic=True)


def _event(bulletin: Bulletin) -> cluster_pb2.ClusterEvent:
    time = timestamp_pb2.Timestamp()
    time.FromNanoseconds(int(bulletin.time_unix_seconds * 1e9))
    return cluster_pb2.ClusterEvent(time=time, event=bulletin.event, facts_json=bulletin.facts_json())
