"""Rank 1 as a process: connects to an address, says something, and stays until it is stopped."""

import asyncio
import ssl
import sys
from pathlib import Path

from macmesh_rdma.control.lane import ControlEvents, ControlOptions, Handshake
from macmesh_rdma.control.socket_lane import SocketControlLane


def contexts(folder: Path) -> list[ssl.SSLContext]:
    made = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")
        context.load_cert_chain(folder / "rank.pem", folder / "rank.key")
        made.append(context)
    return made


async def run(folder: Path, address: str) -> None:
    server_tls, client_tls = contexts(folder)

    async def hello() -> bytes:
        return b"1:secret"

    async def check_hello(_rank: int | None, _certificate: object, _hello: bytes) -> int:
        return 0

    ended = asyncio.Event()
    lane = SocketControlLane(
        server_tls=server_tls,
        client_tls=client_tls,
        handshake=Handshake(hello, lambda _rank, _certificate: None, check_hello),
        events=ControlEvents(lambda _rank, _message: None, lambda _rank, _reason: ended.set(), print),
        options=ControlOptions(ping_interval_seconds=0.1),
    )
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        await lane.bind("127.0.0.1", group)
        await lane.connect(0, address)
        await lane.send(0, b"hello from a process")
        await ended.wait()
        await lane.close()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2]))
