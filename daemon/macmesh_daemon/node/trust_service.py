"""TrustService: renews the certificates of nodes, where this node holds the CA key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from macmesh.reasons import Reason
from macmesh.v1 import join_pb2, join_pb2_grpc
from macmesh_daemon.identity import LocalIdentityError, LocalNoClusterError, RemoteUntrustedError
from macmesh_daemon.node.call_errors import CallError, abort
from macmesh_daemon.node.tls import caller_node_id

if TYPE_CHECKING:
    import grpc

    from macmesh_daemon.node.issuer import Issuer


class TrustService(join_pb2_grpc.TrustServiceServicer):
    """Signs for whoever the connection's certificate says is calling, and only for the same key."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    async def RenewCertificate(
        self, request: join_pb2.RenewCertificateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> join_pb2.RenewCertificateResponse:
        """A new certificate for the caller's own key."""
        try:
            certificate = await self._issuer.renew(caller_node_id(context), request.request_der)
        except LocalNoClusterError as error:
            await abort(context, CallError(Reason.NO_CA_KEY, str(error)))
        except RemoteUntrustedError as error:
            await abort(context, CallError(Reason.INVALID_ARGUMENT, str(error), {"field": "request_der"}))
        except LocalIdentityError as error:
            await abort(context, CallError(Reason.INTERNAL, str(error)))
        return join_pb2.RenewCertificateResponse(certificate_pem=certificate)
