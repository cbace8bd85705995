"""Ranks of a control lane for tests: in memory, or over sockets with certificates that are thrown away."""

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from macmesh_daemon.supervisor.local_plan import throwaway_identities
from macmesh_rdma.control.lane import ControlEvents, ControlLane, ControlOptions, Handshake
from macmesh_rdma.control.socket_lane import SocketControlLane
from macmesh_rdma.errors import RemoteAuthenticationError
from macmesh_rdma.testing.memory_control import MemoryControlLane, MemoryNetwork

DEADLINE_SECONDS = 120.0
QUICK = ControlOptions(
    max_message_bytes=1 << 20,
    max_queue_bytes=2 << 20,
    delivery_deadline_seconds=60.0,
    ping_interval_seconds=0.1,
    silence_deadline_seconds=60.0,
    hello_deadline_seconds=60.0,
    connect_retry_seconds=0.02,
)


def contexts(folder: Path, ca_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> list[ssl.SSLContext]:
    """Server's and client's context of one rank."""
    certificate, key = folder / "rank.pem", folder / "rank.key"
    certificate.write_bytes(certificate_pem)
    key.write_bytes(key_pem)
    made = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=ca_pem.decode())
        context.load_cert_chain(certificate, key)
        made.append(context)
    return made


def name_of(certificate: Mapping[str, Any] | None) -> str:
    """The common name in a certificate."""
    return str(dict(pair for part in (certificate or {}).get("subject", ()) for pair in part)["commonName"])


def handshake(rank: int, secret: bytes = b"secret") -> Handshake:
    """A rank says its number and the secret; its certificate must name the rank too."""

    async def hello() -> bytes:
        return b"%d:%s" % (rank, secret)

    def check_certificate(called: int | None, certificate: Mapping[str, Any] | None) -> None:
        if not name_of(certificate).startswith("rank-") or (
            called is not None and name_of(certificate) != f"rank-{called}"
        ):
            raise RemoteAuthenticationError(f"expected rank {called}, met {name_of(certificate)}")

    async def check_hello(called: int | None, certificate: Mapping[str, Any] | None, hello: bytes) -> int:
        number, _, told = hello.partition(b":")
        if told != secret or f"rank-{number.decode(errors='replace')}" != name_of(certificate):
            raise RemoteAuthenticationError(f"rank {called} does not know the secret")
        return int(number)

    return Handshake(hello, check_certificate, check_hello)


@dataclasses.dataclass
class Rank:
    """A lane and what it told."""

    number: int
    lane: ControlLane
    messages: asyncio.Queue[tuple[int, bytes]]
    lost: list[tuple[int, str]]
    lost_once: asyncio.Event
    strangers: asyncio.Queue[str]
    address: str = ""


class Fabric:
    """Makes ranks of one kind.

    Args:
        kind: "memory" or "socket".
        folder: for keys.
        count: ranks.
    """

    def __init__(self, kind: str, folder: Path, count: int = 3) -> None:
        self.kind = kind
        self.folder = folder
        self.network = MemoryNetwork()
        names = [*(f"rank-{number}" for number in range(count)), "outsider"]
        self.ca_pem, self.identities = throwaway_identities(names)
        self.names = names

    def tls(self, number: int) -> list[ssl.SSLContext]:
        """Contexts of a rank; of the outsider with -1, whose certificate is of the same CA."""
        return contexts(self.folder, self.ca_pem, *self.identities[number])

    def rank(self, number: int, options: ControlOptions = QUICK, secret: bytes = b"secret") -> Rank:
        """A rank that is not bound yet."""
        messages: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        strangers: asyncio.Queue[str] = asyncio.Queue()
        lost: list[tuple[int, str]] = []
        once = asyncio.Event()

        def on_lost(rank: int, reason: str) -> None:
            lost.append((rank, reason))
            once.set()

        events = ControlEvents(lambda r, m: messages.put_nowait((r, m)), on_lost, strangers.put_nowait)
        lane: ControlLane
        if self.kind == "memory":
            certificate = {"subject": ((("commonName", self.names[number]),),)}
            lane = MemoryControlLane(
                self.network,
                certificate=certificate,
                handshake=handshake(number, secret),
                events=events,
                options=options,
            )
        else:
            server_tls, client_tls = self.tls(number)
            lane = SocketControlLane(
                server_tls=server_tls,
                client_tls=client_tls,
                handshake=handshake(number, secret),
                events=events,
                options=options,
            )
        return Rank(number, lane, messages, lost, once, strangers)


@contextlib.asynccontextmanager
async def bound(ranks: Sequence[Rank]) -> AsyncIterator[asyncio.TaskGroup]:
    """Binds the ranks and closes them at the end."""
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        for rank in ranks:
            rank.address = await rank.lane.bind("127.0.0.1", group)
        try:
            yield group
        finally:
            for rank in ranks:
                await rank.lane.close()


@contextlib.asynccontextmanager
async def pair(fabric: Fabric, options: ControlOptions = QUICK) -> AsyncIterator[tuple[Rank, Rank]]:
    """Rank 0, connected to rank 1 by its own call only."""
    first, second = fabric.rank(0, options), fabric.rank(1, options)
    async with bound([first, second]):
        await first.lane.connect(1, second.address)
        await second.lane.wait_for(0)
        yield first, second
