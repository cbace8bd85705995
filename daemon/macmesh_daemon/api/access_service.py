"""AccessService: join tokens, clients' certificates, and shutting out."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from google.protobuf import timestamp_pb2

from macmesh.reasons import Reason
from macmesh.v1 import access_pb2, access_pb2_grpc
from macmesh_daemon.identity import (
    IdentityError,
    LocalClientError,
    LocalNoClusterError,
    LocalTokenError,
    RemoteUntrustedError,
    is_node_id,
)
from macmesh_daemon.identity.clients import DEFAULT_DAYS
from macmesh_daemon.identity.tokens import DEFAULT_TTL_SECONDS
from macmesh_daemon.node.call_errors import CallError, abort
from macmesh_daemon.node.trust import denied_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from macmesh_daemon.identity.clients import ClientRecord
    from macmesh_daemon.identity.tokens import TokenRecord
    from macmesh_daemon.node.runtime import Node


class AccessService(access_pb2_grpc.AccessServiceServicer):
    """Translates between the wire and the issuer. Who may call what is in ``node.authorisation``."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._issuer = node.trust.issuer

    async def IssueJoinToken(
        self, request: access_pb2.IssueJoinTokenRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> access_pb2.IssueJoinTokenResponse:
        """Make a token; the join door opens for as long as it lives."""
        async with _failures(context):
            token, record = await self._issuer.issue_token(
                ttl_seconds=request.ttl_seconds or DEFAULT_TTL_SECONDS, uses=request.uses or 1
            )
        return access_pb2.IssueJoinTokenResponse(
            token=str(token),
            info=self._token_info(record),
            addresses=await self._node.trust.door_addresses(),
        )

    async def ListJoinTokens(
        self, request: access_pb2.ListJoinTokensRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> access_pb2.ListJoinTokensResponse:
        """The tokens, without their secrets, which this node does not know either."""
        del request
        async with _failures(context):
            book = await self._issuer.tokens()
        return access_pb2.ListJoinTokensResponse(tokens=[self._token_info(r) for r in book.records])

    async def RevokeJoinToken(
        self, request: access_pb2.RevokeJoinTokenRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> access_pb2.RevokeJoinTokenResponse:
        """Make a token useless at once."""
        async with _failures(context):
            if not await self._issuer.revoke_token(request.token_id):
                raise CallError(
                    Reason.NOT_FOUND,
                    f"this node issued no token {request.token_id!r}",
                    {"id": request.token_id},
                )
        return access_pb2.RevokeJoinTokenResponse()

    async def IssueClient(
        self, request: access_pb2.IssueClientRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> access_pb2.IssueClientResponse:
        """Certify a client's key."""
        async with _failures(context):
            certificate, ca_pem, record = await self._issuer.issue_client(
                name=request.name,
                role=request.role,
                days=request.days or DEFAULT_DAYS,
                request_der=request.request_der,
            )
        addresses = [a for _, known in self._node.trust.known_nodes() for a in known]
        return access_pb2.IssueClientResponse(
            certificate_pem=certificate, ca_pem=ca_pem, addresses=addresses, info=self._client_info(record)
        )

    async def ListClients(
        self, request: access_pb2.ListClientsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> access_pb2.ListClientsResponse:
        """The clients that this node certified."""
        del request
        async with _failures(context):
            clients = await self._issuer.clients()
        return access_pb2.ListClientsResponse(clients=[self._client_info(client) for client in clients])

    async def Evict(
        self, request: access_pb2.EvictRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> access_pb2.EvictResponse:
        """Shut a node or a client out; answers once that is committed."""
        async with _failures(context):
            if not is_node_id(request.id):
                raise CallError(Reason.INVALID_ARGUMENT, f"{request.id!r} is no id", {"field": "id"})
            seq = await self._node.changes.evict(request.id)
        return access_pb2.EvictResponse(document_seq=seq)

    async def Recover(
        self, request: access_pb2.RecoverRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> access_pb2.RecoverResponse:
        """Begin a new generation with this node as its only voter."""
        del request
        async with _failures(context):
            generation = await self._node.changes.recover()
        return access_pb2.RecoverResponse(generation=generation)

    def _token_info(self, record: TokenRecord) -> access_pb2.JoinTokenInfo:
        return access_pb2.JoinTokenInfo(
            token_id=record.token_id,
            created=_time(record.created_at),
            expires=_time(record.expires_at),
            uses=record.uses,
            admitted_node_ids=record.admitted,
            state=record.state(self._node.trust.wall_seconds()),
        )

    def _client_info(self, record: ClientRecord) -> access_pb2.ClientInfo:
        return access_pb2.ClientInfo(
            client_id=record.client_id,
            name=record.name,
            role=record.role,
            issued=_time(record.issued_at),
            expires=_time(record.expires_at),
            revoked=record.client_id in denied_ids(self._node.driver.view),
        )


@asynccontextmanager
async def _failures(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """End the call with what went wrong, in the words of the contract."""
    try:
        yield
    except CallError as error:
        await abort(context, error)
    except LocalNoClusterError as error:
        await abort(context, CallError(Reason.NO_CA_KEY, str(error)))
    except (LocalTokenError, LocalClientError, RemoteUntrustedError) as error:
        await abort(context, CallError(Reason.INVALID_ARGUMENT, str(error)))
    except (IdentityError, OSError) as error:
        await abort(context, CallError(Reason.INTERNAL, str(error)))


def _time(seconds: float) -> timestamp_pb2.Timestamp:
    time = timestamp_pb2.Timestamp()
    time.FromNanoseconds(int(seconds * 1e9))
    return time
