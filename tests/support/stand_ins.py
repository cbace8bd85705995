"""Values that stand in where nothing looks at them."""

import datetime as dt
from pathlib import Path

import grpc

from macmesh.v1 import peer_pb2_grpc
from macmesh_daemon.identity import NodeCredentials
from macmesh_daemon.node.peer_service import CorePeerService
from macmesh_daemon.node.transport import GrpcTransport


def stand_in_credentials(node_id: str = "n") -> NodeCredentials:
    """Credentials without a key, for what only hands them on to a fake worker."""
    return NodeCredentials(
        node_id=node_id,
        key_pem=b"",
        cert_pem=b"",
        ca_pem=b"",
        cluster_hash="h",
        founder=True,
        hardware_id="",
        expires_at=dt.datetime.now(dt.UTC),
        key_path=Path(),
        cert_path=Path(),
    )


def serve_core(transport: GrpcTransport, server: grpc.aio.Server) -> None:
    """Serve the core's messages and nothing else of a node."""
    service = CorePeerService(transport)  # type: ignore[abstract]
    peer_pb2_grpc.add_PeerServiceServicer_to_server(service, server)
