"""How a node asks other nodes: an interface, and its implementation over gRPC.

The core's messages take this way and no other, so a driver runs the same over sockets and, in virtual time, over
`macmesh_daemon.node.testing.MemoryNetwork`.
"""

from __future__ import annotations

import abc
import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from macmesh_daemon.cluster import messages as msg
from macmesh_daemon.node.call_errors import is_of_peer
from macmesh_daemon.node.codec import from_proto, to_proto
from macmesh_daemon.node.errors import RemoteCallFailed
from macmesh_daemon.node.knock import knock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from macmesh_daemon.cluster.events import FailureKind
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
    * A call to a machine that is up and where nobody listens fails as "refused", and no other call does; each
      such failure is fresh news, never a memory of an earlier one.
    * A connection to a peer that ends by the other side's doing is told of within milliseconds (`tell_losses`).
      It may be told of more than once, and where none was lost.
    """

    def __init__(self) -> None:
        self._handler: Handler | None = None
        self._told: list[Callable[[str], None]] = []

    @abc.abstractmethod
    async def call(self, peer: str, message: msg.Request, deadline_seconds: float) -> msg.Response:
        """Ask a peer.

        Raises:
            RemoteCallFailed: No answer came within the deadline, no address is known, or the peer refused; its
                `kind` says which.
        """

    def tell_losses(self, told: Callable[[str], None]) -> None:
        """Call ``told(peer)`` whenever a connection to a peer is lost."""
        self._told.append(told)

    def connection_lost(self, peer: str) -> None:
        """Tell that a connection to a peer was lost; for the side that sees it."""
        for told in self._told:
            told(peer)

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
    """Over the channels of a `PeerPool`, whose `watch` sees the losses; `CorePeerService` is the receiving side."""

    def __init__(self, peers: PeerPool) -> None:
        super().__init__()
        self._peers = peers

    async def call(self, peer: str, message: msg.Request, deadline_seconds: float) -> msg.Response:
        """See `Transport.call`."""
        stub = self._peers.stub(peer)
        if stub is None:
            raise RemoteCallFailed("no address known")
        method = getattr(stub, _METHODS[type(message)])
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline_seconds
        try:
            response: msg.Response = from_proto(await method(to_proto(message), timeout=deadline_seconds))
        except grpc.aio.AioRpcError as error:
            kind = await self._kind_of(error, peer, until - loop.time())
            raise RemoteCallFailed(f"{error.code().name}: {error.details()}", kind) from error
        return response

    async def _kind_of(self, error: grpc.aio.AioRpcError, peer: str, seconds_left: float) -> FailureKind:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return "deadline"
        if error.code() is not grpc.StatusCode.UNAVAILABLE or is_of_peer(error):
            return "error"
        # No answer of the peer's, but gRPC's: it has no connection, or had one and lost it.
        knocked = await knock(self._peers.own_addresses(peer), seconds_left)
        return "refused" if knocked == "refused" else "lost"
