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
    try:
        yield nodes[0], nodes[1], lambda: servers[1].stop(None)
    finally:
        for pool in pools:
            await pool.close()
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
        with pytest.raises(RemoteCallFailed, match="DEADLINE_EXCEEDED"):
            await one.call(b, REQUEST, 0.1)
        assert asyncio.get_running_loop().time() - begun < 1.0


async def test_nobody_there_is_said_at_once(pair: MakePair, tmp_path: Path) -> None:
    async with pair(tmp_path) as ((_, one), (b, other), take_down):
        with pytest.raises(RemoteCallFailed):
            await one.call("a stranger", REQUEST, 5)
        with pytest.raises(RemoteCallFailed):
            await one.call(b, REQUEST, 5)  # it serves nothing yet
        other.serve(answer)
        await one.call(b, REQUEST, 5)
        await take_down()
        with pytest.raises(RemoteCallFailed):
            await one.call(b, REQUEST, 0.5)


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
        network.heal()
        await one.call("b", REQUEST, 0.5)
        await network.close()

    run_virtual(main())
