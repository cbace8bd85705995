"""Joining a cluster: the machine's side of the join door."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh.v1 import join_pb2
from macmesh_daemon.config import split_address
from macmesh_daemon.discovery.peers import FILE_NAME as PEERS_FILE_NAME
from macmesh_daemon.discovery.peers import peers_file
from macmesh_daemon.files import write_durably
from macmesh_daemon.identity import (
    LocalClusterExistsError,
    RemoteJoinRefusedError,
    RemoteUnreachableError,
    RemoteUntrustedError,
    cluster_of,
    install_membership,
    load_or_create_identity,
    make_certificate_request,
    node_dns_name,
    replace_certificate,
)
from macmesh_daemon.identity.certificates import cluster_hash_of
from macmesh_daemon.identity.errors import LocalCredentialsError
from macmesh_daemon.node.join_wire import frame, read_message

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from macmesh_daemon.identity import JoinToken, NodeCredentials

#: For one connection: connect, handshake, ask, answer.
ASK_DEADLINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Joined:
    """What joining brought."""

    credentials: NodeCredentials
    #: The node already belonged to the cluster; it has a newer certificate now.
    renewed: bool


async def join_cluster(data_dir: Path, token: JoinToken, addresses: Sequence[str]) -> Joined:
    """Make the machine a node of the token's cluster, and keep what that takes in ``data_dir``.

    At each address in turn: fetches the CA certificate without trusting anything, compares its hash with the
    token's, and only then, over TLS that this CA vouches for and to the very node that issued the token, tells
    the secret. The private key never leaves the machine.

    Args:
        data_dir: The node's folder.
        token: From `daemonctl cluster token`.
        addresses: ``host:port`` of join doors that may be the right one, best first.

    Raises:
        LocalClusterExistsError: The folder belongs to another cluster.
        LocalCredentialsError: The folder's identity is broken, or the certificate received does not fit it.
        RemoteUntrustedError: Whoever answers is not the token's cluster; the secret was not told.
        RemoteJoinRefusedError: The cluster does not admit this machine.
        RemoteUnreachableError: Nobody answers.
        OSError: The folder cannot be written.
    """
    identity = await asyncio.to_thread(load_or_create_identity, data_dir)
    present = await asyncio.to_thread(cluster_of, data_dir)
    if present is not None and present != token.cluster_hash:
        raise LocalClusterExistsError(
            f"{data_dir} belongs to cluster {present[:8]} and the token is of {token.cluster_hash[:8]}: "
            "use another data_dir, or remove this one to leave that cluster for good"
        )
    request_der = make_certificate_request(identity.key_pem)
    failure: RemoteUnreachableError | RemoteUntrustedError = RemoteUnreachableError(
        "no address of the cluster is known"
    )
    for address in addresses:
        try:
            ca_pem = await fetch_ca(address, token.cluster_hash)
            admitted = await _ask_admission(address, ca_pem, token, request_der)
        except (RemoteUnreachableError, RemoteUntrustedError) as error:
            # An impostor is worse news than silence.
            if isinstance(error, RemoteUntrustedError) or isinstance(failure, RemoteUnreachableError):
                failure = error
            continue
        return await asyncio.to_thread(_keep, data_dir, present is not None, ca_pem, admitted)
    raise failure


async def fetch_ca(address: str, cluster_hash: str) -> bytes:
    """The CA certificate (PEM) from a join door, whose hash is the one expected.

    Raises:
        RemoteUntrustedError: It has another hash.
        RemoteUnreachableError: Nobody answers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is trusted yet and nothing is told: what comes back is judged by its hash alone.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    request = join_pb2.JoinRequest(cluster_ca=join_pb2.ClusterCaRequest())
    response = await _ask(address, context, None, request)
    ca_pem = response.cluster_ca.ca_pem
    try:
        found = cluster_hash_of(ca_pem)
    except LocalCredentialsError:
        raise RemoteUntrustedError(f"{address} did not answer with a CA certificate") from None
    if found != cluster_hash:
        raise RemoteUntrustedError(
            f"{address} belongs to cluster {found[:8]}, not to {cluster_hash[:8]} as the token says; "
            "the token's secret was not sent"
        )
    return ca_pem


async def _ask_admission(
    address: str, ca_pem: bytes, token: JoinToken, request_der: bytes
) -> join_pb2.AdmitResponse:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    request = join_pb2.JoinRequest(
        admit=join_pb2.AdmitRequest(token_id=token.token_id, secret=token.secret, request_der=request_der)
    )
    response = await _ask(address, context, node_dns_name(token.issuer_node_id), request)
    if response.WhichOneof("answer") == "refused":
        refused = response.refused
        raise RemoteJoinRefusedError(refused.reason, refused.message, refused.retry_after_seconds)
    return response.admitted


async def _ask(
    address: str, context: ssl.SSLContext, server_name: str | None, request: join_pb2.JoinRequest
) -> join_pb2.JoinResponse:
    host, port = split_address(address)
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(ASK_DEADLINE_SECONDS):
            # With an empty name no SNI is sent and none is checked.
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=server_name or ""
            )
            writer.write(frame(request))
            await writer.drain()
            return await read_message(reader, join_pb2.JoinResponse)
    except TimeoutError:
        raise RemoteUnreachableError(
            f"{address} did not answer within {ASK_DEADLINE_SECONDS:.0f} s"
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise RemoteUntrustedError(
            f"{address} is not the node that issued the token: {error.verify_message or error}; "
            "the token's secret was not sent"
        ) from error
    except (OSError, EOFError) as error:
        raise RemoteUnreachableError(
            f"{address} cannot be reached: {error or type(error).__name__}"
        ) from error
    finally:
        if writer is not None:
            writer.transport.abort()


def _keep(data_dir: Path, renewed: bool, ca_pem: bytes, admitted: join_pb2.AdmitResponse) -> Joined:
    if renewed:
        return Joined(replace_certificate(data_dir, admitted.certificate_pem), renewed=True)
    # The addresses first: a daemon that waits for the membership finds them there.
    nodes = [(node.node_id, tuple(node.addresses)) for node in admitted.nodes if node.addresses]
    write_durably(data_dir / PEERS_FILE_NAME, json.dumps(peers_file(nodes), indent=2).encode())
    credentials = install_membership(data_dir, admitted.certificate_pem, ca_pem, founder=False)
    return Joined(credentials, renewed=False)
