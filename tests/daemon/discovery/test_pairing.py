"""A machine that belongs to no cluster finds the open join door of one, on real sockets."""

import asyncio

import pytest
import structlog

from macmesh_daemon.discovery import Advertisement, Hints, MdnsDiscovery
from macmesh_daemon.discovery.pairing import find_join_door
from macmesh_daemon.discovery.session import ResolvedService
from macmesh_daemon.discovery.txt import decode_txt, encode_txt

A, B = "a" * 26, "b" * 26
LOOPBACK = ("127.0.0.1",)


def hints(join_port: int, cluster: str = "20000001") -> Hints:
    return Hints(protocol_version=1, cluster_prefix=cluster, pairing_open=join_port > 0, join_port=join_port)


@pytest.mark.parametrize("port", [0, 1, 27451, 65535])
def test_the_port_of_the_door_is_announced_while_it_is_open(port: int) -> None:
    encoded = encode_txt(A, hints(port))
    assert ("jp" in encoded) == (port > 0)
    raw: dict[bytes, bytes | None] = {k.encode(): v.encode() for k, v in encoded.items()}
    assert decode_txt(raw, A) == hints(port)
    for bad in (b"65536", b"-1", b"x", b"99999999999999999999999"):
        found = decode_txt({**raw, b"jp": bad}, A)
        assert found is not None
        assert found.join_port == 0


async def test_a_door_that_opens_while_somebody_looks_is_found() -> None:
    node = MdnsDiscovery(Advertisement(A, 4001, hints(0)), interfaces=LOOPBACK)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(node.run(lambda _candidate: None))
        looking = group.create_task(find_join_door("20000001", A, interfaces=LOOPBACK, deadline_seconds=60))
        node.advertise(Advertisement(A, 4001, hints(4100)))
        assert await looking == ("127.0.0.1:4100",)
        running.cancel()


async def test_nobody_and_the_wrong_ones_are_not_found() -> None:
    node = MdnsDiscovery(Advertisement(A, 4001, hints(4100)), interfaces=LOOPBACK)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(node.run(lambda _candidate: None))
        for cluster, issuer in (("20000001", B), ("20000002", A)):
            with pytest.raises(TimeoutError):
                await find_join_door(cluster, issuer, interfaces=LOOPBACK, deadline_seconds=0.2)
        running.cancel()


async def test_what_strangers_announce_is_never_logged_as_it_came() -> None:
    hostile = "\x1b[2Jboo\n"
    node = MdnsDiscovery(Advertisement(A, 4001, hints(0)), interfaces=LOOPBACK)
    raw = {k.encode(): v.encode() for k, v in encode_txt(B, hints(0)).items()}
    with structlog.testing.capture_logs() as logs:
        for key in (b"chip", b"host", b"st", b"cl", b"id", b"jp", b"inc", b"unknown"):
            service = ResolvedService(("127.0.0.1",), 4002, {**raw, key: hostile.encode()}, 200)
            node._judge(B, service)
            node._seen(f"{hostile}.{B}", gone=False)
    assert "boo" not in repr(logs)
    candidate = node._judge(B, ResolvedService(("127.0.0.1",), 4002, {**raw, b"chip": hostile.encode()}, 200))
    assert candidate is not None
    assert candidate.hints is not None
    assert candidate.hints.chip.isprintable()
