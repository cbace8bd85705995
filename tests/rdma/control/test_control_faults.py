"""A control lane over sockets, and peers that are broken, hostile, stopped or cut off."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_ranks import DEADLINE_SECONDS, QUICK, Fabric, Rank, bound, pair
from macmesh_rdma.control.state import encode_frame
from macmesh_rdma.errors import LocalLaneFullError, LocalLaneStateError, RemotePeerLostError

PEER_MAIN = Path(__file__).parent / "control_peer_main.py"
IMPATIENT = dataclasses.replace(QUICK, delivery_deadline_seconds=0.4, silence_deadline_seconds=0.4)


@pytest.fixture
def fabric(tmp_path: Path) -> Fabric:
    return Fabric("socket", tmp_path)


@contextlib.asynccontextmanager
async def raw_peer(
    fabric: Fabric, rank: Rank
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Rank 1 with its right certificate, that says what the test wants."""
    host, _, port = rank.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=fabric.tls(1)[1], server_hostname="")
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


GARBAGE = [
    (b"\xff\xff\xff\xffm", "4294967295 bytes; the limit"),
    ((1 << 20).to_bytes(4, "big") + b"m", "inside a frame"),
    (b"\x00\x00\x00\x00", "a frame of 0 bytes"),
    (b"\x00\x00", "inside a frame"),
    (encode_frame(b"m", b"whole")[:-2], "inside a frame"),
    (encode_frame(b"?", b"what"), "a frame of kind b'?'"),
    (encode_frame(b"p", b"short"), "a frame of kind b'p' with 5 bytes"),
    (encode_frame(b"q", bytes(8)), "a frame of kind b'q'"),
    (b"", "closed the connection"),
]


@pytest.mark.parametrize(("junk", "told"), GARBAGE)
async def test_what_cannot_be_read_after_the_hello_ends_the_lane(
    fabric: Fabric, junk: bytes, told: str
) -> None:
    rank = fabric.rank(0)
    async with bound([rank]), raw_peer(fabric, rank) as (reader, writer):
        writer.write(encode_frame(b"m", b"1:secret") + encode_frame(b"m", b"fine") + junk)
        assert await reader.readexactly(13) == encode_frame(b"m", b"0:secret")
        assert await rank.messages.get() == (1, b"fine")
        writer.write_eof() if writer.can_write_eof() else writer.close()
        await rank.lost_once.wait()
        assert rank.lost[0][0] == 1
        assert told in rank.lost[0][1]
        with pytest.raises(LocalLaneStateError):
            rank.lane.send_now(1, b"x")


@pytest.mark.parametrize("junk", [junk for junk, _ in GARBAGE if junk])
async def test_what_cannot_be_read_before_the_hello_is_a_strangers(fabric: Fabric, junk: bytes) -> None:
    rank = fabric.rank(0, dataclasses.replace(QUICK, max_hello_bytes=1000, hello_deadline_seconds=0.2))
    async with bound([rank]), raw_peer(fabric, rank) as (reader, writer):
        writer.write(junk)
        assert await reader.read() == b""
        assert await rank.strangers.get()
        assert not rank.lost


async def test_too_many_callers_at_once_are_turned_away(fabric: Fabric) -> None:
    rank = fabric.rank(0, dataclasses.replace(QUICK, max_callers=1))
    async with bound([rank]), raw_peer(fabric, rank), raw_peer(fabric, rank) as (reader, _):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert "in their handshake already" in await rank.strangers.get()


class Proxy:
    """Forwards bytes between two sockets until it is frozen: then both ends stand open, and nothing passes."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._thawed = asyncio.Event()
        self._thawed.set()
        self.address = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        async with asyncio.TaskGroup() as group:
            connections: list[asyncio.Task[None]] = []

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                connections.append(group.create_task(self._join(reader, writer)))

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            try:
                yield self
            finally:
                server.close()
                for task in connections:
                    task.cancel()

    def freeze(self) -> None:
        self._thawed.clear()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._host, int(self._port))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, there_writer))
                group.create_task(self._pass(there_reader, writer))
        finally:
            writer.transport.abort()
            there_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            await self._thawed.wait()
            writer.write(chunk)


async def test_a_half_open_connection_is_noticed_by_both_ends_within_the_deadline(fabric: Fabric) -> None:
    first, second = fabric.rank(0, IMPATIENT), fabric.rank(1, IMPATIENT)
    async with bound([first, second]), Proxy(second.address).running() as proxy:
        await first.lane.connect(1, proxy.address)
        first.lane.send_now(1, b"before")
        assert await second.messages.get() == (0, b"before")
        proxy.freeze()
        await first.lost_once.wait()
        await second.lost_once.wait()
        assert "answered no ping" in first.lost[0][1]
        assert "answered no ping" in second.lost[0][1]


async def test_an_idle_lane_lives(fabric: Fabric) -> None:
    async with pair(fabric, IMPATIENT) as (first, second):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2 * IMPATIENT.silence_deadline_seconds):
                await first.lost_once.wait()
        first.lane.send_now(1, b"after")
        assert await second.messages.get() == (0, b"after")


async def test_a_peer_that_does_not_read_fails_its_own_messages_and_delays_no_other(fabric: Fabric) -> None:
    options = dataclasses.replace(QUICK, delivery_deadline_seconds=1.5, max_queue_bytes=64 << 20)
    rank, other = fabric.rank(0, options), fabric.rank(2, options)
    async with bound([rank, other]), raw_peer(fabric, rank) as (reader, writer):
        await rank.lane.connect(2, other.address)
        writer.write(encode_frame(b"m", b"1:secret"))
        await reader.readexactly(13)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a TLS transport can
        for _ in range(30):
            rank.lane.send_now(1, bytes(1_000_000))
        rank.lane.send_now(2, b"prompt")
        assert await other.messages.get() == (0, b"prompt")
        assert not rank.lost
        await rank.lost_once.wait()
        assert rank.lost == [(1, "it has not taken a message for 1.5 s")]


async def test_waiting_for_room_ends_at_the_deadline(fabric: Fabric) -> None:
    options = dataclasses.replace(QUICK, delivery_deadline_seconds=0.3)
    rank = fabric.rank(0, options)
    async with bound([rank]), raw_peer(fabric, rank) as (reader, writer):
        writer.write(encode_frame(b"m", b"1:secret"))
        await reader.readexactly(13)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a TLS transport can

        async def flood() -> None:
            for _ in range(100):
                await rank.lane.send(1, bytes(1_000_000))

        with pytest.raises((LocalLaneFullError, LocalLaneStateError)):
            await flood()


@pytest.mark.process
@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_stopped_or_killed_process_is_noticed(fabric: Fabric, fault: signal.Signals) -> None:
    first = fabric.rank(0, dataclasses.replace(QUICK, silence_deadline_seconds=1.0))
    fabric.tls(1)
    (fabric.folder / "ca.pem").write_bytes(fabric.ca_pem)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    async with bound([first]):
        peer = await asyncio.create_subprocess_exec(
            sys.executable, str(PEER_MAIN), str(fabric.folder), first.address, env=environment
        )
        try:
            await first.lane.wait_for(1)
            assert await first.messages.get() == (1, b"hello from a process")
            peer.send_signal(fault)
            await first.lost_once.wait()
            expected = "answered no ping" if fault == signal.SIGSTOP else "closed the connection"
            assert expected in first.lost[0][1] or "broke" in first.lost[0][1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                peer.kill()
            await peer.wait()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


async def test_many_lanes_leave_no_descriptor_and_no_task(fabric: Fabric) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        for _ in range(2):
            async with pair(fabric):
                pass
        before = open_descriptors()
        for _ in range(40):
            async with pair(fabric) as (first, _second):
                first.lane.send_now(1, b"x")
        assert open_descriptors() <= before + 2
        assert len(asyncio.all_tasks()) == 1


async def test_a_rank_that_cannot_be_reached(fabric: Fabric) -> None:
    rank = fabric.rank(0)
    async with bound([rank]):
        with pytest.raises(RemotePeerLostError, match="cannot be reached"):
            await rank.lane.connect(1, "255.255.255.255:9")
