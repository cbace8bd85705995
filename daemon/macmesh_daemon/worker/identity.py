"""Who is at the other end of a control lane: TLS says the node, a proof under the epoch's key the stage."""

import hashlib
import hmac
import ssl
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macmesh.v1 import lane_pb2, types_pb2
from macmesh_daemon.worker.errors import LocalStartError, RemoteNeighbourError

NODE_NAME_SUFFIX = ".node.macmesh"
_PROOF_INPUT = struct.Struct(">IQQQ")


def tls_contexts(start: lane_pb2.StartStage) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts for accepting and for connecting: TLS 1.3, both sides show a certificate of the cluster's CA.

    Raises:
        LocalStartError: the certificate, key or CA cannot be used.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The name is checked after the handshake, by one function for both sides; see `require_node`.
    client.check_hostname = False
    try:
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=start.ca_pem.decode())
        # The ssl module takes a key from a file only.
        with tempfile.TemporaryDirectory(prefix="macmesh-tls-") as folder:
            certificate, key = Path(folder) / "node.pem", Path(folder) / "node.key"
            certificate.write_bytes(start.certificate_pem)
            key.touch(mode=0o600)
            key.write_bytes(start.key_pem)
            for context in (server, client):
                context.load_cert_chain(certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise LocalStartError(f"the node's certificate, key or CA cannot be used: {error}") from error
    return server, client


def require_node(certificate: Mapping[str, Any] | None, node_id: str) -> None:
    """Lets a neighbour pass whose certificate names the node of its stage.

    Args:
        certificate: as `ssl.SSLSocket.getpeercert` gives it; the handshake has checked that the CA signed it.
        node_id: the node that the plan has at this stage.

    Raises:
        RemoteNeighbourError: it names another node.
    """
    subject = dict(pair for part in (certificate or {}).get("subject", ()) for pair in part)
    names = [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "DNS"]
    if subject.get("commonName") != node_id or node_id + NODE_NAME_SUFFIX not in names:
        raise RemoteNeighbourError(
            f"expected node {node_id}, but the certificate names {subject.get('commonName')}"
        )


def stage_proof(epoch_key: bytes, epoch: types_pb2.Epoch, stage_index: int) -> bytes:
    """HMAC-SHA256 under the epoch's key of stage index (4 bytes) and epoch (3 times 8 bytes), big-endian."""
    text = _PROOF_INPUT.pack(stage_index, epoch.generation, epoch.term, epoch.seq)
    return hmac.new(epoch_key, text, hashlib.sha256).digest()


def require_proof(
    hello: lane_pb2.LaneHello, epoch_key: bytes, epoch: types_pb2.Epoch, stage_index: int
) -> None:
    """Lets a hello pass that comes from the expected stage of this epoch.

    Raises:
        RemoteNeighbourError: it comes from another stage, or without the epoch's key.
    """
    if hello.stage_index != stage_index:
        raise RemoteNeighbourError(f"expected stage {stage_index}, but stage {hello.stage_index} called")
    if not hmac.compare_digest(hello.proof, stage_proof(epoch_key, epoch, stage_index)):
        raise RemoteNeighbourError(f"stage {stage_index} does not know the key of this epoch")
