"""The two doors of a node: mutual TLS for peers and remote clients, a Unix socket for local ones."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import stat
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from macmesh.channel_options import SERVER_OPTIONS
from macmesh.paths import socket_address
from macmesh.v1 import access_pb2_grpc, cluster_pb2_grpc, inference_pb2_grpc, join_pb2_grpc, peer_pb2_grpc
from macmesh_daemon.discovery import join_address
from macmesh_daemon.files import make_guarded_folder
from macmesh_daemon.node.errors import LocalPortBusy
from macmesh_daemon.node.gate import Gate
from macmesh_daemon.node.tls import reloadable_server_credentials, server_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from macmesh_daemon.config import Config
    from macmesh_daemon.node.live_credentials import LiveCredentials

#: Time that running calls get to end when the node stops.
GRACE_SECONDS = 1.0


class Doors:
    """Both gRPC servers. The port is known before anything is served."""

    def __init__(
        self, config: Config, credentials: LiveCredentials, *, is_denied: Callable[[str], bool]
    ) -> None:
        self._socket_path = config.resolved_socket_path()
        #: Who may call what on the peers' port.
        self.gate = Gate(local=False, is_denied=is_denied)
        self._peers = grpc.aio.server(options=server_options(), interceptors=[self.gate])
        owner = Gate(local=True, is_denied=is_denied)
        self._clients = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[owner])
        self.health = health.aio.HealthServicer()
        address = join_address(config.listen_host, config.listen_port)
        try:
            self.port = self._peers.add_secure_port(address, reloadable_server_credentials(credentials))
        except RuntimeError as error:
            raise LocalPortBusy(address, error) from error
        if self.port == 0:
            raise LocalPortBusy(address, None)

    def serve(
        self,
        peer: peer_pb2_grpc.PeerServiceServicer,
        cluster: cluster_pb2_grpc.ClusterServiceServicer,
        inference: inference_pb2_grpc.InferenceServiceServicer,
        trust: join_pb2_grpc.TrustServiceServicer,
        access: access_pb2_grpc.AccessServiceServicer,
    ) -> None:
        """Register the services; peers' door also serves clients that hold a certificate of the cluster."""
        peer_pb2_grpc.add_PeerServiceServicer_to_server(peer, self._peers)
        join_pb2_grpc.add_TrustServiceServicer_to_server(trust, self._peers)
        for server in (self._peers, self._clients):
            cluster_pb2_grpc.add_ClusterServiceServicer_to_server(cluster, server)
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
            access_pb2_grpc.add_AccessServiceServicer_to_server(access, server)
            health_pb2_grpc.add_HealthServicer_to_server(self.health, server)

    async def open(self) -> None:
        """Start both servers.

        Raises:
            LocalFolderNotPrivateError: somebody else could replace the socket.
            LocalPortBusy: the socket cannot be bound.
        """
        await asyncio.to_thread(prepare_socket_folder, self._socket_path)
        try:
            if self._clients.add_insecure_port(socket_address(self._socket_path)) == 0:
                raise LocalPortBusy(str(self._socket_path), None)
        except RuntimeError as error:
            raise LocalPortBusy(str(self._socket_path), error) from error
        # Nobody else may write to its folder, and until here nothing answers on it.
        self._socket_path.chmod(0o600)
        await self._clients.start()
        await self._peers.start()
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Stop both servers; running calls get a short grace."""
        await self.health.enter_graceful_shutdown()
        await self._clients.stop(GRACE_SECONDS)
        await self._peers.stop(GRACE_SECONDS)
        with contextlib.suppress(OSError):
            self._socket_path.unlink()


def prepare_socket_folder(path: Path) -> None:
    """Make the socket's folder and remove a socket that no daemon holds any more. Blocks.

    The caller holds the data folder's lock, so a socket file that is left is a dead daemon's.

    Raises:
        LocalFolderNotPrivateError: somebody else owns the folder or may write to it.
    """
    make_guarded_folder(path.parent)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def lanes_host(hosts: Iterable[str]) -> str:
    """The address to which workers bind their lanes: the first of ours that other machines can use as it is.

    A link-local IPv6 address means something else on every machine. Loopback where there is no other.
    """
    for host in hosts:
        if not ipaddress.ip_address(host).is_link_local:
            return host
    return "127.0.0.1"
