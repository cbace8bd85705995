"""How a node asks other nodes: an interface, and its implementation over gRPC.

The core's messages take this way and no other, so a driver runs the same over sockets and, in virtual time, over
`macmesh_daemon.node.testing.MemoryNetwork`.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import grpc

from macmesh_daemon.cluster import messages as msg
from macmesh_daemon.node.codec import from_proto, to_proto
from macmesh_daemon.node.errors import RemoteCallFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from macmesh_daemon.node.peers import PeerPool

    Handler = Callable[[str, msg.Request], Awaitable[msg.Response]]

_METHODS: dict[type[Any], str] = {
    msg.RequestVoteRequest: "RequestVote",
    msg.HeartbeatRequest: "Heartbeat",
    msg.PrepareRequest: "Prepare",
    msg.CommitRequest: "Commit",
    msg.SetPeersRequest: "SetPeers",
    msg.ProbeRequest: "Probe",
    msg.LeaveRequest: "Leave",
    msg.TransferLeadershipRequest: "TransferLeadership",
}


class Transport(abc.ABC):
    """Carries the core's requests to other nodes and theirs to this one.

    * Every `call` ends within its deadline: in the answer, or in `RemoteCallFailed`.
    * A call that failed may still have reached the peer, and its handler may still run.
    * Calls overtake each other; nothing keeps their order.
    * The sender that a handler is told is proved, not claimed.
    """

    def __init__(self) -> None:
        self._handler: Handler | None = None

    @abc.abstractmethod
    async def call(self, peer: str, message: msg.Request, deadline_seconds: float) -> msg.Response:
        """Ask a peer.

        Raises:
            RemoteCallFailed: No answer came within the deadline, no address is known, or the peer refused.
        """

    def serve(self, handler: Handler) -> None:
        """Have the requests of peers answered by ``handler(sender, message)``; until then they are refused."""
        self._handler = handler

    async def handle(self, sender: str, message: msg.Request) -> msg.Response:
        """Have a peer's request answered; for the side that receives it.

        Raises:
            RemoteCallFailed: This node serves nothing yet.
        """
        if self._handler is None:
            raise RemoteCallFailed("UNAVAILABLE: the node is only starting")
        return await self._handler(sender, message)


class GrpcTransport(Transport):
    """Over the channels of a `PeerPool`; `CorePeerService` is the receiving side."""

    def __init__(self, peers: PeerPool) -> None:
        super().__init__()
        self._peers = peers

    async def call(self, peer: str, message: msg.Request, deadline_seconds: float) -> msg.Response:
        """See `Transport.call`."""
        stub = self._peers.stub(peer)
        if stub is None:
            raise RemoteCallFailed("no address known")
        method = getattr(stub, _METHODS[type(message)])
        try:
            response: msg.Response = from_proto(await method(to_proto(message), timeout=deadline_seconds))
        except grpc.aio.AioRpcError as error:
            raise RemoteCallFailed(f"{error.code().name}: {error.details()}") from error
        return response
