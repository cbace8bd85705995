"""A node follows its machine's addresses, and a peer that moved is found again."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import grpc
import pytest

from macmesh_daemon.cluster import messages as msg
from macmesh_daemon.identity import init_cluster, load_credentials, provision_node
from macmesh_daemon.node import own_addresses
from macmesh_daemon.node.errors import RemoteCallFailed
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.own_addresses import OwnAddresses
from macmesh_daemon.node.peers import MAX_ADDRESSES, PeerPool
from macmesh_daemon.node.tls import server_credentials, server_options
from macmesh_daemon.node.transport import GrpcTransport
from support.mesh import Mesh
from support.ports import free_ports
from support.stand_ins import serve_core, stand_in_credentials
from support.virtual_loop import LoopClock, run_virtual

if TYPE_CHECKING:
    from pathlib import Path


def test_the_interfaces_are_followed() -> None:
    async def main() -> None:
        hosts: list[tuple[str, ...] | OSError] = [("10.0.0.1",)]
        changes: list[tuple[str, ...]] = []

        async def read() -> tuple[str, ...]:
            now = hosts[-1]
            if isinstance(now, OSError):
                raise now
            return now

        own = OwnAddresses(
            ("10.0.0.1",), 27, read=read, clock=LoopClock(), changed=lambda: changes.append(own.current)
        )
        task = asyncio.create_task(own.run())
        await asyncio.sleep(10)
        assert not changes
        hosts.append(("10.0.0.2", "fd00::1"))
        await asyncio.sleep(2.1)
        assert changes == [("10.0.0.2:27", "[fd00::1]:27")]
        for nothing in ((), OSError("no")):  # the network is away: nothing better is known
            hosts.append(nothing)
            await asyncio.sleep(10)
            assert own.hosts == ("10.0.0.2", "fd00::1")
        hosts.append(("10.0.0.3",))
        own.refresh()  # woken up: no need to wait for the next look
        await asyncio.sleep(0.01)
        assert own.current == ("10.0.0.3:27",)
        task.cancel()
        await asyncio.wait([task])

    run_virtual(main())


async def test_newer_addresses_go_first_and_older_ones_stay_a_while() -> None:
    pool = PeerPool(LiveCredentials(stand_in_credentials()))
    pool.learn("n", ["a:1", "b:1"])
    pool.learn("n", ["c:1"])
    assert pool.addresses("n") == ("c:1", "a:1", "b:1")
    pool.learn("n", ["b:1"])
    assert pool.addresses("n") == ("b:1", "c:1", "a:1")
    pool.learn("n", [])
    pool.learn("n", [f"d:{i}" for i in range(MAX_ADDRESSES - 1)])
    assert pool.addresses("n")[-1] == "b:1"
    assert len(pool.addresses("n")) == MAX_ADDRESSES
    assert pool.is_news("n", 1, ["x:1", "y:1"])
    assert not pool.is_news("n", 1, ["y:1", "x:1"])
    assert pool.is_news("n", 2, ["y:1", "x:1"])
    assert pool.is_news("n", 2, ["x:1"])


async def test_a_peer_is_found_behind_a_dead_address_and_dialled_anew_after_a_sleep(tmp_path: Path) -> None:
    ca = init_cluster(tmp_path / "a")
    node_id = provision_node(tmp_path / "b", ca)

    async def answer(_sender: str, _message: msg.Request) -> msg.Response:
        return msg.ProbeResponse(reached=True)

    pool = PeerPool(LiveCredentials(load_credentials(tmp_path / "a")))
    served = GrpcTransport(pool)
    served.serve(answer)
    server = grpc.aio.server(options=server_options())
    serve_core(served, server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(load_credentials(tmp_path / "b")))
    await server.start()
    tidying = asyncio.create_task(pool.tidy())
    try:
        transport = GrpcTransport(pool)
        [dead] = free_ports(1)
        pool.learn(node_id, [f"127.0.0.1:{dead}"])
        with pytest.raises(RemoteCallFailed, match="UNAVAILABLE"):
            await transport.call(node_id, msg.ProbeRequest(), 60)
        pool.learn(node_id, [f"127.0.0.1:{port}"])
        await transport.call(node_id, msg.ProbeRequest(), 60)
        working = pool.channel(node_id)
        # Wrong news: the connection that works is kept, and after a sleep the address behind it is found again.
        pool.learn(node_id, [f"127.0.0.1:{dead}"])
        await transport.call(node_id, msg.ProbeRequest(), 60)
        assert pool.channel(node_id) is working
        pool.redial()
        assert pool.channel(node_id) is not working
        await transport.call(node_id, msg.ProbeRequest(), 60)
    finally:
        tidying.cancel()
        await asyncio.wait([tidying])
        await pool.close()
        await server.stop(None)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has one loopback address only")
async def test_the_cluster_learns_that_a_node_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_addresses, "POLL_SECONDS", 0.2)
    mesh = Mesh(tmp_path, 2, listen_host="0.0.0.0")  # noqa: S104  it moves between loopback addresses
    for node in mesh.nodes:
        node.hosts = ("127.0.0.1",)
    async with mesh:
        status = await mesh.formed()
        # One coordinates, the other does not. Their old addresses go on answering, so which comes first is open.
        for node in mesh.nodes:
            node.hosts = ("127.0.0.2",)
        for node in mesh.nodes:
            status = await mesh.until(
                node,
                lambda s: all(
                    any(a.startswith("127.0.0.2:") for a in m.addresses) for m in s.document.members
                ),
                "told where everybody is",
            )
        assert status.has_quorum
