"""Every transport keeps the contract of `Transport`: in memory, and gRPC over sockets and mutual TLS."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from macmesh_daemon.cluster import messages as msg
from macmesh_daemon.identity import init_cluster, load_credentials, provision_node
from macmesh_daemon.node.errors import RemoteCallFailed
from macmesh_daemon.node.knock import knock
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.peers import PeerPool
from macmesh_daemon.node.testing import MemoryNetwork, Weather
from macmesh_daemon.node.tls import server_credentials, server_options
from macmesh_daemon.node.transport import GrpcTransport
from support.stand_ins import serve_core
from support.virtual_loop import run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from macmesh_daemon.node.transport import Transport

    #: Two transports that can reach each other, with their nodes' ids, and how to take the second one down.
    Pair = tuple[tuple[str, Transport], tuple[str, Transport], Callable[[], Awaitable[None]]]
    MakePair = Callable[[Path], AbstractAsyncContextManager[Pair]]

REQUEST = msg.ProbeRequest(target_node_id="somebody")


@asynccontextmanager
async def in_memory(folder: Path) -> AsyncIterator[Pair]:
    del folder
    network = MemoryNetwork(random.Random(1))  # noqa: S311  no secret

    async def take_down() -> None:
        network.leave("b")

    yield ("a", network.join("a")), ("b", network.join("b")), take_down
    await network.close()


@asynccontextmanager
async def over_grpc(folder: Path) -> AsyncIterator[Pair]:
    ca = init_cluster(folder / "a")
    provision_node(folder / "b", ca)
    nodes, pools, servers, ports = [], [], [], []
    for name in ("a", "b"):
        credentials = load_credentials(folder / name)
        pool = PeerPool(LiveCredentials(credentials))
        transport = GrpcTransport(pool)
        server = grpc.aio.server(options=server_options())
        serve_core(transport, server)
        ports.append(server.add_secure_port("127.0.0.1:0", server_credentials(credentials)))
        await server.start()
        nodes.append((credentials.node_id, transport))
        pools.append(pool)
        servers.append(server)
    pools[0].learn(nodes[1][0], [f"127.0.0.1:{ports[1]}"])
    pools[1].learn(nodes[0][0], [f"127.0.0.1:{ports[0]}"])
    watch = asyncio.create_task(pools[0].watch(nodes[0][1].connection_lost), name="watch")
    try:
        yield nodes[0], nodes[1], lambda: servers[1].stop(None)
    finally:
        for pool in pools:
            await pool.close()
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        for server in servers:
            await server.stop(None)


@pytest.fixture(params=["memory", "grpc"])
def pair(request: pytest.FixtureRequest) -> MakePair:
    return in_memory if request.param == "memory" else over_grpc


async def answer(sender: str, message: msg.Request) -> msg.Response:
    assert message == REQUEST
    return msg.ProbeResponse(reached=True, generation=1, term=len(sender))


async def test_a_call_is_answered_and_the_sender_is_proved(pair: MakePair, tmp_path: Path) -> None:
    async with pair(tmp_path) as ((a, one), (b, other), _):
        senders: list[str] = []

        async def note(sender: str, message: msg.Request) -> msg.Response:
            senders.append(sender)
            return await answer(sender, message)

        other.serve(note)
        one.serve(answer)
        assert await one.call(b, REQUEST, 5) == msg.ProbeResponse(reached=True, generation=1, term=len(a))
        assert await other.call(a, REQUEST, 5) == msg.ProbeResponse(reached=True, generation=1, term=len(b))
        assert senders == [a]


async def test_many_calls_at_once_get_their_own_answers(pair: MakePair, tmp_path: Path) -> None:
    async def echo(sender: str, message: msg.Request) -> msg.Response:
        del sender
        assert isinstance(message, msg.CommitRequest)
        return msg.CommitResponse(message.epoch, committed=True)

    async with pair(tmp_path) as ((_, one), (b, other), _):
        other.serve(echo)
        epochs = [msg.Epoch(1, 1, n) for n in range(30)]
        answers = await asyncio.gather(*(one.call(b, msg.CommitRequest(1, epoch), 5) for epoch in epochs))
    assert answers == [msg.CommitResponse(epoch, committed=True) for epoch in epochs]


async def test_silence_ends_with_the_deadline(pair: MakePair, tmp_path: Path) -> None:
    async def say_nothing(sender: str, message: msg.Request) -> msg.Response:
        del sender, message
        await asyncio.Event().wait()
        raise AssertionError

    async with pair(tmp_path) as ((_, one), (b, other), _):
        other.serve(say_nothing)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(RemoteCallFailed, match="DEADLINE_EXCEEDED") as failed:
            await one.call(b, REQUEST, 0.1)
        assert failed.value.kind == "deadline"
        assert asyncio.get_running_loop().time() - begun < 1.0


async def test_nobody_there_is_said_at_once(pair: MakePair, tmp_path: Path) -> None:
    async with pair(tmp_path) as ((_, one), (b, other), take_down):
        with pytest.raises(RemoteCallFailed) as failed:
            await one.call(b, REQUEST, 5)  # it serves nothing yet
        assert failed.value.kind == "error"
        other.serve(answer)
        await one.call(b, REQUEST, 5)
        await take_down()
        for _ in range(2):
            with pytest.raises(RemoteCallFailed) as failed:
                await one.call(b, REQUEST, 5)
            assert failed.value.kind == "refused"


async def test_a_lost_connection_is_told_of_and_so_are_the_calls_on_it(
    pair: MakePair, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def say_nothing(sender: str, message: msg.Request) -> msg.Response:
        del sender, message
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with pair(tmp_path) as ((_, one), (b, other), take_down):
        lost: asyncio.Queue[str] = asyncio.Queue()
        one.tell_losses(lost.put_nowait)
        other.serve(say_nothing)
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(_failure(one, b), name="call")
            async with asyncio.timeout(60):
                await asked.wait()
                assert lost.empty()
                await take_down()
                assert await lost.get() == b
            failure = await call
        # What the first connection's end says is "lost"; a transport that finds nobody there by then may say so.
        assert failure.kind in {"lost", "refused"}


async def _failure(transport: Transport, peer: str) -> RemoteCallFailed:
    with pytest.raises(RemoteCallFailed) as failed:
        await transport.call(peer, REQUEST, 10)
    return failed.value


async def test_a_refusal_is_never_an_old_one(tmp_path: Path) -> None:
    """A channel of gRPC repeats, until it connects again, why it could not the last time."""
    async with over_grpc(tmp_path) as ((_, one), (b, other), take_down):
        other.serve(answer)
        await one.call(b, REQUEST, 5)
        assert isinstance(one, GrpcTransport)
        (address,) = one._peers.own_addresses(b)
        await take_down()
        assert (await _failure(one, b)).kind == "refused"
        host, port = address.rsplit(":", 1)
        listener = await asyncio.start_server(lambda _reader, writer: writer.close(), host, int(port))
        async with listener:
            failure = await _failure(one, b)
        assert failure.kind == "lost", "somebody listens there again"


async def test_knocking_tells_who_listens_who_refuses_and_who_is_silent() -> None:
    listener = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        there, silent = f"127.0.0.1:{port}", "no address"
        closed = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        unused = f"127.0.0.1:{closed.sockets[0].getsockname()[1]}"
        closed.close()
        await closed.wait_closed()
        assert await knock([there], 5) == "accepted"
        assert await knock([unused], 5) == "refused"
        assert await knock([unused, silent], 5) == "refused"
        assert await knock([unused, there], 5) == "accepted"
        assert await knock([silent], 5) == "silent"
        assert await knock([], 5) == "silent"


async def test_a_machine_that_takes_no_packets_is_silent_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(*_args: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", for_ever)
    begun = asyncio.get_running_loop().time()
    assert await knock(["192.0.2.1:1", "192.0.2.2:1"], 0.05) == "silent"
    assert asyncio.get_running_loop().time() - begun < 1.0


def test_weather_loses_repeats_and_cuts(tmp_path: Path) -> None:
    del tmp_path

    async def main() -> None:
        network = MemoryNetwork(random.Random(3), Weather(loss=0.3, duplicates=0.3))  # noqa: S311  no secret
        one, other = network.join("a"), network.join("b")
        other.serve(answer)
        lost = 0
        for _ in range(200):
            try:
                await one.call("b", REQUEST, 0.5)
            except RemoteCallFailed:
                lost += 1
        assert 60 < lost < 140  # either way may fail: 0.51
        assert 140 < network.delivered < 220  # 0.7 arrive, and some twice
        network.weather = Weather()
        network.cut("b", "a")
        before = network.delivered
        with pytest.raises(RemoteCallFailed, match="DEADLINE"):
            await one.call("b", REQUEST, 0.5)
        assert network.delivered == before + 1
        network.leave("b")
        with pytest.raises(RemoteCallFailed, match="DEADLINE"):
            await one.call("b", REQUEST, 0.5)  # it refuses, but that does not arrive
        other = network.join("b")
        other.serve(answer)
        network.heal()
        await one.call("b", REQUEST, 0.5)
        await network.close()

    run_virtual(main())
