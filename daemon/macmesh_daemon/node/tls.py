"""Mutual TLS between nodes: gRPC credentials and options, and finding out which node answers at an address.

Trust is the cluster's CA and nothing else; the certificate, never a message, says who is calling. Errors
are those of ``macmesh_daemon.identity``.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cryptography import x509

from macmesh.channel_options import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from macmesh_daemon.identity import (
    ANY_NODE_NAME,
    LocalCredentialsError,
    NodeCredentials,
    RemoteUnreachableError,
    RemoteUntrustedError,
    is_node_id,
    node_dns_name,
    node_id_of_certificate,
)

if TYPE_CHECKING:
    from macmesh_daemon.node.live_credentials import LiveCredentials

Options = list[tuple[str, str | int]]

#: A TLS handshake on a local network takes milliseconds; who opens a connection and says nothing is cut off
#: after this (gRPC's default is two minutes).
HANDSHAKE_DEADLINE_MS = 5_000
#: Open connections of the peers' port. A node needs one per peer and client, and a prober's for a moment.
MAX_CONNECTIONS = 1024
#: gRPC lets calls above it wait in line, heartbeats too, so this is only a backstop: the gate refuses a
#: caller's calls long before (see ``node.gate``).
MAX_STREAMS_PER_CONNECTION = 512
#: Longest message from the network. The longest in earnest is a prompt: a million token ids take 3 MB, a
#: million tokens of text about 4 MB.
PEER_MESSAGE_BYTES = 8 * 1024 * 1024

# A frozen or unplugged peer is noticed within about two seconds by these. ping_timeout_ms matters: without
# it gRPC takes a minute for a stopped process. A hung event loop still answers pings: only an RPC's
# deadline notices that.
_KEEPALIVE: Options = [
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
]


def reloadable_server_credentials(live: LiveCredentials) -> grpc.ServerCredentials:
    """Credentials like those of `server_credentials` that follow a renewal: new handshakes show the new certificate.

    Connections that stand already are not touched.
    """
    told = live.current

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC's own threads, at each handshake.
        nonlocal told
        if live.current is told:
            return None
        told = live.current
        return _server_configuration(told)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(told),
        fetch,  # type: ignore[arg-type]  # None means "unchanged", as gRPC documents
        require_client_authentication=True,
    )


def _server_configuration(credentials: NodeCredentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(credentials.key_pem, credentials.cert_pem)], root_certificates=credentials.ca_pem
    )


def server_credentials(credentials: NodeCredentials) -> grpc.ServerCredentials:
    """Credentials of a server that shakes hands only with holders of a certificate of this cluster."""
    return grpc.ssl_server_credentials(
        [(credentials.key_pem, credentials.cert_pem)],
        root_certificates=credentials.ca_pem,
        require_client_auth=True,
    )


def server_options() -> Options:
    """Options of a node's gRPC server.

    It permits the ping rate of ``channel_options`` (it would answer GOAWAY otherwise) and refuses a port
    that is in use instead of sharing it. What strangers can hold open is bounded: connections in number,
    handshakes in time; streams and messages per connection bound what a member can.
    """
    return [
        *_KEEPALIVE,
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_DEADLINE_MS),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        ("grpc.max_receive_message_length", PEER_MESSAGE_BYTES),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]


def channel_credentials(credentials: NodeCredentials) -> grpc.ChannelCredentials:
    """Credentials of a channel that trusts this cluster's CA only and shows this node's certificate."""
    return grpc.ssl_channel_credentials(
        root_certificates=credentials.ca_pem,
        private_key=credentials.key_pem,
        certificate_chain=credentials.cert_pem,
    )


def channel_options(expected_node_id: str | None) -> Options:
    """Options of a channel to one node, or with None to any node of the cluster.

    A channel to one node fails (UNAVAILABLE) when another answers at its address. gRPC does not show a
    client whose certificate it was given, so use ``probe_node_id`` where the id is not known.

    Raises:
        ValueError: ``expected_node_id`` has not the form of a node id.
    """
    if expected_node_id is not None and not is_node_id(expected_node_id):
        raise ValueError(f"{expected_node_id!r} is not a node id")
    name = ANY_NODE_NAME if expected_node_id is None else node_dns_name(expected_node_id)
    return [
        *_KEEPALIVE,
        ("grpc.max_receive_message_length", PEER_MESSAGE_BYTES),
        ("grpc.ssl_target_name_override", name),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # One connection per channel: closing a peer's channel closes its connection.
        ("grpc.use_local_subchannel_pool", 1),
        # Peers are on the local network; a proxy from the environment is for the internet.
        ("grpc.enable_http_proxy", 0),
    ]


def open_channel(
    address: str, credentials: NodeCredentials, *, expected_node_id: str | None
) -> grpc.aio.Channel:
    """Open a channel to ``host:port`` (an IPv6 host in brackets); it connects at the first call."""
    return grpc.aio.secure_channel(
        address, channel_credentials(credentials), options=channel_options(expected_node_id)
    )


def caller_node_id(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Return the id of the node that is calling, from its certificate.

    Raises:
        RemoteUntrustedError: The call did not come over mutual TLS, or not from a node of the cluster.
    """
    auth = context.auth_context()
    pems = auth.get("x509_pem_cert") or ()
    for pem in pems:
        data = pem if isinstance(pem, bytes) else str(pem).encode("ascii")
        try:
            certificate = x509.load_pem_x509_certificate(data)
        except ValueError as error:
            raise RemoteUntrustedError(f"the caller's certificate cannot be read: {error}") from error
        return node_id_of_certificate(certificate)
    raise RemoteUntrustedError("the caller showed no certificate")


def client_ssl_context(credentials: NodeCredentials) -> ssl.SSLContext:
    """Make the context of a TLS client that trusts this cluster only and shows this node's certificate.

    Reads the key's file: call it through a thread from asyncio.

    Raises:
        LocalCredentialsError: The key's or the certificate's file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the peer and its name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # gRPC servers end handshakes that do not agree on HTTP/2.
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=credentials.ca_pem.decode("ascii"))
        context.load_cert_chain(credentials.cert_path, credentials.key_path)
    except OSError as error:
        raise LocalCredentialsError(f"{credentials.cert_path}: cannot be used for TLS: {error}") from error
    return context


async def probe_node_id(
    host: str, port: int, credentials: NodeCredentials, *, deadline_seconds: float
) -> str:
    """Shake hands with whoever listens at an address and return its node id.

    Needs no id beforehand, as for a static seed. It promises that the peer holds the key of a certificate
    of this cluster; not that the peer accepts ours, which the first RPC shows.

    Args:
        host: IPv4 or IPv6 address (with ``%scope`` where link-local) or a name.
        port: TCP port.
        credentials: This node's.
        deadline_seconds: For connecting and the handshake together.

    Raises:
        RemoteUnreachableError: Nobody answered TLS there in time.
        RemoteUntrustedError: Whoever answered is no node of this cluster.
        LocalCredentialsError: This node's files cannot be read.
    """
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(deadline_seconds):
            context = await asyncio.to_thread(client_ssl_context, credentials)
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=ANY_NODE_NAME)
    except TimeoutError:
        raise RemoteUnreachableError(f"{where} did not answer within {deadline_seconds} s") from None
    except ssl.SSLCertVerificationError as error:
        raise RemoteUntrustedError(
            f"{where} is no node of this cluster: {error.verify_message or error}"
        ) from error
    except OSError as error:  # ssl.SSLError, ConnectionError and socket.gaierror are OSErrors
        raise RemoteUnreachableError(f"{where} cannot be reached over TLS: {error}") from error
    try:
        tls = writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True)
    finally:
        # No close_notify: the peer speaks HTTP/2 and has nothing to say to a prober.
        writer.transport.abort()
    return node_id_of_certificate(x509.load_der_x509_certificate(der))
