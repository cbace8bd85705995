"""Dialling what an open network offers: bounded in memory, in number and in frequency."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from macmesh.v1 import peer_pb2, peer_pb2_grpc
from macmesh_daemon.clock import ManualClock
from macmesh_daemon.discovery import Candidate
from macmesh_daemon.identity import create_cluster_ca, load_credentials, provision_node
from macmesh_daemon.node import candidates, tls
from macmesh_daemon.node.candidates import MAX_ADDRESSES, MAX_STRANGERS, CandidateDialer
from macmesh_daemon.node.gate import Gate
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.peers import PeerPool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from macmesh_daemon.discovery import Source

NAME = "a" * 26


@pytest.fixture
def live(tmp_path: Path) -> LiveCredentials:
    provision_node(tmp_path / "n", create_cluster_ca())
    return LiveCredentials(load_credentials(tmp_path / "n"))


@pytest.fixture
def closed_ports() -> Iterator[list[int]]:
    """Ports at which nobody listens while the test runs."""
    held = [socket.socket() for _ in range(3)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    yield [one.getsockname()[1] for one in held]
    for one in held:
        one.close()


class World:
    def __init__(self, live: LiveCredentials, tasks: asyncio.TaskGroup) -> None:
        self.clock = ManualClock()
        self.tasks = tasks
        self.denied: set[str] = set()
        self.peers = PeerPool(live)
        self.dialler = CandidateDialer(
            node_id="b" * 26,
            credentials=live,
            peers=self.peers,
            clock=self.clock,
            hello=lambda _: peer_pb2.HelloRequest(),
            notify=lambda _: None,
            is_denied=self.denied.__contains__,
            tasks=tasks,
        )
        self.dialled: list[str] = []

    def offer(self, *addresses: str, source: Source = "mdns", name: str = NAME) -> None:
        self.dialler.offer(Candidate(name, addresses, source))


def count_dials(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tls.probe_node_id

    async def probe(host: str, port: int, *args: object, **kwargs: object) -> str:
        world.dialled.append(f"{host}:{port}")
        return await real(host, port, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(candidates, "probe_node_id", probe)


async def drained(world: World) -> None:
    async with asyncio.timeout(60):
        while any(world.dialler._running.values()):  # noqa: ASYNC110  a dial tells nobody that it failed
            await asyncio.sleep(0)


async def test_an_address_is_left_alone_for_longer_and_longer_under_any_name(
    live: LiveCredentials, closed_ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.TaskGroup() as tasks:
        world = World(live, tasks)
        count_dials(world, monkeypatch)
        first, second = (f"127.0.0.1:{port}" for port in closed_ports[:2])
        times = []
        for _ in range(40):
            before = len(world.dialled)
            for letter in "cdefg":  # five names, one address
                world.offer(first, name=letter * 26)
            await drained(world)
            if len(world.dialled) > before:
                times.append(world.clock.now())
            await world.clock.advance(1.0)
        waits = [b - a for a, b in itertools.pairwise(times)]
        assert len(world.dialled) == len(times)
        assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
        assert set(waits[4:]) <= {15.0}
        # Another address of the same candidate is not held back by it.
        world.offer(first, second)
        await drained(world)
        assert world.dialled[-1] == second


async def test_a_flood_of_names_takes_bounded_memory_and_leaves_the_known_ones_room(
    live: LiveCredentials, closed_ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.TaskGroup() as tasks:
        world = World(live, tasks)
        count_dials(world, monkeypatch)
        for number in range(3000):
            world.offer(f"127.{number // 250}.{number % 250}.1:{closed_ports[0]}")
            if number % 500 == 0:
                assert sum(world.dialler._running.values()) <= MAX_STRANGERS
                world.offer(f"127.0.0.1:{closed_ports[1]}", source="static")
                await drained(world)
        await drained(world)
        assert world.dialler.passed_over >= 3000 - 7 * MAX_STRANGERS - 100
        assert f"127.0.0.1:{closed_ports[1]}" in world.dialled
        assert len(world.dialled) <= 8 * MAX_STRANGERS + 10
        for number in range(3 * MAX_ADDRESSES):
            world.dialler._record(str(number))
        assert world.dialler.remembered() == MAX_ADDRESSES


async def test_who_was_shut_out_is_not_dialled(
    live: LiveCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.TaskGroup() as tasks:
        world = World(live, tasks)
        count_dials(world, monkeypatch)
        world.denied.add(NAME)
        world.offer("127.0.0.1:1")
        await drained(world)
        assert world.dialled == []


async def test_a_node_that_was_shut_out_learns_it_from_the_refusal(tmp_path: Path) -> None:
    ca = create_cluster_ca()
    for name in ("me", "other"):
        provision_node(tmp_path / name, ca)
    me, other = (LiveCredentials(load_credentials(tmp_path / name)) for name in ("me", "other"))
    denied: set[str] = {me.current.node_id}

    class Peer(peer_pb2_grpc.PeerServiceServicer):
        async def Hello(self, request: Any, context: Any) -> peer_pb2.HelloResponse:  # noqa: N802  the contract's
            del request, context
            return peer_pb2.HelloResponse(protocol_version=1)

    gate = Gate(local=False, is_denied=denied.__contains__)
    server = grpc.aio.server(options=tls.server_options(), interceptors=[gate])
    peer = Peer()  # type: ignore[abstract]  # the other calls answer UNIMPLEMENTED
    peer_pb2_grpc.add_PeerServiceServicer_to_server(peer, server)
    port = server.add_secure_port("127.0.0.1:0", tls.reloadable_server_credentials(other))
    await server.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            world = World(me, tasks)
            world.offer(f"127.0.0.1:{port}")
            await drained(world)
            assert world.dialler.told_evicted
            denied.clear()
            await world.clock.advance(60)
            world.offer(f"127.0.0.1:{port}")
            await drained(world)
            assert not world.dialler.told_evicted
            await world.peers.close()
    finally:
        await server.stop(None)
