"""A join door on a real socket, a machine that joins, and a thief who listens."""

from __future__ import annotations

import asyncio
import ssl
import struct
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from macmesh.v1 import join_pb2
from macmesh_daemon.clock import SystemClock
from macmesh_daemon.identity import init_cluster, load_credentials
from macmesh_daemon.node.issuer import Issuer
from macmesh_daemon.node.join_door import DoorLimits, JoinDoor
from macmesh_daemon.node.live_credentials import LiveCredentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from macmesh_daemon.identity import JoinToken

HOST = "127.0.0.1"
#: All callers of a test come from one address.
GENEROUS = DoorLimits(handshakes_per_second=200, handshakes_per_address_per_second=200)


class Cluster:
    """The issuing side: a founder's folder, its issuer and its door."""

    def __init__(self, folder: Path, limits: DoorLimits = GENEROUS) -> None:
        self.folder = folder
        init_cluster(folder)
        self.credentials = LiveCredentials(load_credentials(folder))
        #: Wall time of the issuer; stands still.
        self.now = time.time()
        self.denied: set[str] = set()
        self.ports: list[int] = []
        #: Set once the door has been shut.
        self.shut = asyncio.Event()
        self.issuer = Issuer(
            folder,
            node_id=self.credentials.current.node_id,
            wall_seconds=lambda: self.now,
            is_denied=lambda node_id: node_id in self.denied,
        )
        self.door = JoinDoor(
            host=HOST,
            port=0,
            credentials=self.credentials,
            issuer=self.issuer,
            known_nodes=lambda: [(self.credentials.current.node_id, ("127.0.0.1:27450",))],
            clock=SystemClock(),
            wall_seconds=lambda: self.now,
            tell_port=self._note_port,
            limits=limits,
        )

    def _note_port(self, port: int) -> None:
        self.ports.append(port)
        if port == 0:
            self.shut.set()

    async def token(self, uses: int = 1, ttl_seconds: int = 3600) -> JoinToken:
        token, _ = await self.issuer.issue_token(ttl_seconds=ttl_seconds, uses=uses)
        async with asyncio.timeout(60):
            await self.door.opened()
        return token

    @property
    def address(self) -> str:
        return f"{HOST}:{self.door.port}"


@asynccontextmanager
async def open_cluster(folder: Path, limits: DoorLimits = GENEROUS) -> AsyncIterator[Cluster]:
    """A cluster whose door opens with its first token."""
    cluster = Cluster(folder, limits)
    task = asyncio.create_task(cluster.door.run())
    try:
        yield cluster
    finally:
        task.cancel()
        await asyncio.wait({task})


class Thief:
    """Answers on TLS with any certificate it was given, and keeps every byte that it is told."""

    def __init__(self, cert_path: Path, key_path: Path, ca_pem: bytes) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert_path, key_path)
        self._ca_pem = ca_pem
        self.heard = b""
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(4096):
                self.heard += chunk
                answer = join_pb2.JoinResponse(cluster_ca=join_pb2.ClusterCaResponse(ca_pem=self._ca_pem))
                content = answer.SerializeToString()
                writer.write(struct.pack(">I", len(content)) + content)
        except OSError:
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, HOST, 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield f"{HOST}:{self.port}"
        finally:
            server.close()
