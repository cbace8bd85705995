"""PeerService: what other nodes may ask of this one. The caller is who its certificate says."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from macmesh.reasons import Reason
from macmesh.v1 import peer_pb2, peer_pb2_grpc
from macmesh_daemon.cluster.events import CandidateVerified
from macmesh_daemon.identity import RemoteUntrustedError
from macmesh_daemon.node.call_errors import CallError, abort
from macmesh_daemon.node.codec import from_proto, to_proto
from macmesh_daemon.node.errors import RemoteCallFailed
from macmesh_daemon.node.stage_stats import WORKER_DEADLINE_SECONDS
from macmesh_daemon.node.tls import caller_node_id
from macmesh_daemon.node.weights_service import WeightsService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from macmesh_daemon.node.runtime import Node
    from macmesh_daemon.node.transport import Transport

PROTOCOL_VERSION = 1


class CorePeerService(peer_pb2_grpc.PeerServiceServicer):
    """The receiving side of a `GrpcTransport`: hands the core's messages to it and answers with the reply."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def _ask_core(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        sender = await _caller(context)
        try:
            return to_proto(await self._transport.handle(sender, from_proto(request)))
        except TimeoutError:
            await abort(context, CallError(Reason.INTERNAL, "the node did not answer in time"))
        except RemoteCallFailed as error:
            await abort(context, CallError(Reason.NOT_READY, str(error)))

    async def RequestVote(
        self, request: peer_pb2.RequestVoteRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.RequestVoteResponse:
        """A vote, or a pre-vote."""
        response: peer_pb2.RequestVoteResponse = await self._ask_core(request, context)
        return response

    async def Heartbeat(
        self, request: peer_pb2.HeartbeatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.HeartbeatResponse:
        """The coordinator's heartbeat."""
        response: peer_pb2.HeartbeatResponse = await self._ask_core(request, context)
        return response

    async def Prepare(
        self, request: peer_pb2.PrepareRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.PrepareResponse:
        """The promise of an epoch."""
        response: peer_pb2.PrepareResponse = await self._ask_core(request, context)
        return response

    async def Commit(
        self, request: peer_pb2.CommitRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.CommitResponse:
        """The start of an epoch."""
        response: peer_pb2.CommitResponse = await self._ask_core(request, context)
        return response

    async def SetPeers(
        self, request: peer_pb2.SetPeersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.SetPeersResponse:
        """Addresses and key for this node's worker."""
        response: peer_pb2.SetPeersResponse = await self._ask_core(request, context)
        return response

    async def Probe(
        self, request: peer_pb2.ProbeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.ProbeResponse:
        """Whether a node is there."""
        response: peer_pb2.ProbeResponse = await self._ask_core(request, context)
        return response

    async def Leave(
        self, request: peer_pb2.LeaveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.LeaveResponse:
        """A member's goodbye."""
        response: peer_pb2.LeaveResponse = await self._ask_core(request, context)
        return response

    async def TransferLeadership(
        self, request: peer_pb2.TransferLeadershipRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.TransferLeadershipResponse:
        """The coordinator's wish that this node takes over."""
        response: peer_pb2.TransferLeadershipResponse = await self._ask_core(request, context)
        return response


class PeerService(CorePeerService, WeightsService):
    """All that a node answers other nodes."""

    def __init__(self, node: Node) -> None:
        CorePeerService.__init__(self, node.transport)
        WeightsService.__init__(self, node.library, node.weights_limits)
        self._node = node

    async def Hello(
        self, request: peer_pb2.HelloRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.HelloResponse:
        """Introduce this node; the caller, proved by its certificate, becomes a verified candidate."""
        sender = await _caller(context)
        if request.protocol_version != PROTOCOL_VERSION:
            await abort(
                context,
                CallError(
                    Reason.INVALID_ARGUMENT,
                    f"this node speaks protocol {PROTOCOL_VERSION}, the caller {request.protocol_version}; "
                    "run the same version of macmesh on every node",
                ),
            )
        addresses = tuple(request.addresses)
        if self._node.peers.is_news(sender, request.boot_nonce, addresses):
            # What a node says of its own addresses is good until this node has dialled it and knows better.
            self._node.peers.learn(sender, addresses)
        self._node.driver.notify(
            CandidateVerified(
                node_id=sender,
                addresses=self._node.peers.addresses(sender) or addresses,
                facts=from_proto(request.facts),
                boot_nonce=request.boot_nonce,
                discovery=request.discovery,
                has_cluster=request.has_cluster,
            )
        )
        return self._node.introduction.answer()

    async def ProfileModel(
        self, request: peer_pb2.ProfileModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.ProfileModelResponse:
        """The profile of a model that this node has."""
        await _caller(context)
        try:
            models = self._node.planning.models
            answer = models.profile_partial if request.partial else models.profile_here
            model, profile = await answer(request.model_id)
        except CallError as error:
            await abort(context, error)
        return peer_pb2.ProfileModelResponse(
            model=to_proto(model), profile_json=profile.to_json_text().encode()
        )

    async def ProposeChange(
        self, request: peer_pb2.ProposeChangeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.ProposeChangeResponse:
        """Take a change for the cluster; answers once its plan is committed."""
        await _caller(context)
        try:
            return await self._node.changes.take(request)
        except CallError as error:
            await abort(context, error)

    async def RunRequest(
        self, request: peer_pb2.RunRequestRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[peer_pb2.RunRequestResponse]:
        """Run a request on this node's head worker."""
        await _caller(context)
        try:
            async with aclosing(self._node.stage_host.run_request(request)) as responses:
                async for response in responses:
                    yield response
        except CallError as error:
            await abort(context, error)

    async def GetOwnStageStats(
        self, request: peer_pb2.GetOwnStageStatsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.GetOwnStageStatsResponse:
        """What this node's worker says of its memory and its time."""
        await _caller(context)
        try:
            epoch, host = from_proto(request.epoch), self._node.stage_host
            stats = (
                host.newest_stats(epoch)
                if request.newest
                else await host.stats(epoch, WORKER_DEADLINE_SECONDS)
            )
        except CallError as error:
            await abort(context, error)
        return peer_pb2.GetOwnStageStatsResponse(stats=stats)

    async def MakeDrillFault(
        self, request: peer_pb2.MakeDrillFaultRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.MakeDrillFaultResponse:
        """A fault of this node's own, for a rehearsal that an operator asked another node for."""
        await _caller(context)
        try:
            done = await self._node.drills.make_here(request.kind)
        except CallError as error:
            await abort(context, error)
        return peer_pb2.MakeDrillFaultResponse(done=done)


async def _caller(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    try:
        return caller_node_id(context)
    except RemoteUntrustedError as error:
        await abort(context, CallError(Reason.NOT_A_MEMBER, str(error)))
