"""What every source of candidates promises, asked of all of them, the fake included."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon.discovery.fake_session import FakeMulticast
from macmesh_daemon.clock import ManualClock
from macmesh_daemon.discovery import (
    Advertisement,
    Candidate,
    Discovery,
    FakeDiscovery,
    FakeNetwork,
    Hints,
    MdnsDiscovery,
    PeerBook,
    StaticDiscovery,
)

OWN, PEER = "a" * 26, "b" * 26
ADDRESS = "10.0.0.2:27450"
HINTS = Hints(protocol_version=1, cluster_prefix="0123abcd")


@dataclass
class Subject:
    discovery: Discovery
    #: The source knows this much of its candidate's id.
    node_id: str | None


def static(clock: ManualClock, _folder: Path) -> Subject:
    return Subject(StaticDiscovery([ADDRESS, ADDRESS], clock=clock), None)


def peers(clock: ManualClock, folder: Path) -> Subject:
    book = PeerBook(folder / "peers.json", own_node_id=OWN, clock=clock)
    book.remember(PEER, [ADDRESS])
    book.remember(OWN, ["10.0.0.1:27450"])
    return Subject(book, PEER)


def fake(clock: ManualClock, _folder: Path) -> Subject:
    network = FakeNetwork()
    network.join(FakeDiscovery(network, PEER, (ADDRESS,), clock=clock))
    return Subject(FakeDiscovery(network, OWN, ("10.0.0.1:27450",), clock=clock), PEER)


def mdns(clock: ManualClock, _folder: Path) -> Subject:
    network = FakeMulticast()
    network.put(Advertisement(OWN, 27450, HINTS))
    network.put(Advertisement(PEER, 27450, HINTS))
    discovery = MdnsDiscovery(
        Advertisement(OWN, 27450, HINTS),
        clock=clock,
        open_session=network.open_session,
        read_interfaces=network.read_interfaces,
    )
    return Subject(discovery, PEER)


Maker = Callable[[ManualClock, Path], Subject]


async def until(condition: Callable[[], bool]) -> None:
    """Give the event loop turns until something is true; threads may have to answer first."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  what is awaited offers no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("make", [static, peers, fake, mdns])
async def test_the_contract_of_discovery(make: Maker, tmp_path: Path) -> None:
    clock = ManualClock()
    subject = make(clock, tmp_path)
    discovery, found = subject.discovery, list[Candidate]()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(discovery.run(found.append))
        await until(lambda: bool(found))
        assert {(c.node_id, c.addresses, c.source) for c in found} == {
            (subject.node_id, (ADDRESS,), discovery.source)
        }
        assert discovery.health() == ()

        count = len(found)
        await clock.advance(20)
        assert len(found) > count, "candidates are reported again in time"

        count = len(found)
        discovery.refresh()
        await until(lambda: len(found) > count)

        assert not task.done()
        task.cancel()
    count = len(found)
    await clock.advance(60)
    discovery.refresh()
    await clock.settle()
    assert len(found) == count, "nothing is reported after the end"
    assert {c.node_id for c in found} == {subject.node_id}


async def test_fake_nodes_see_each_other_unless_cut_off() -> None:
    clock, network = ManualClock(), FakeNetwork()
    seen: dict[str, set[str | None]] = {OWN: set(), PEER: set()}
    network.cut(PEER)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(
                FakeDiscovery(network, name, (f"{name}:1",), clock=clock).run(
                    lambda candidate, name=name: seen[name].add(candidate.node_id)  # type: ignore[misc]
                )
            )
            for name in (OWN, PEER)
        ]
        await clock.advance(20)
        assert seen == {OWN: set(), PEER: set()}
        network.heal(PEER)
        await clock.advance(6)
        assert seen == {OWN: {PEER}, PEER: {OWN}}
        for task in tasks:
            task.cancel()


def test_malformed_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="host:port"):
        StaticDiscovery(["mac-without-port"])


async def run_briefly(book: PeerBook, clock: ManualClock, ready: Callable[[], bool]) -> list[Candidate]:
    found: list[Candidate] = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(book.run(found.append))
        await until(ready)
        await clock.settle()
        task.cancel()
    return found


async def test_peers_are_known_after_a_restart(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "peers.json"
    first = PeerBook(path, own_node_id=OWN, clock=clock)
    first.remember(PEER, [ADDRESS, "[fe80::2%4]:27450"])
    first.remember("c" * 26, ["10.0.0.3:1"])
    first.forget("c" * 26)
    await run_briefly(first, clock, path.exists)
    second = PeerBook(path, own_node_id=OWN, clock=clock)
    found = await run_briefly(second, clock, lambda: bool(second.peers()))
    assert set(found) == {Candidate(PEER, (ADDRESS, "[fe80::2%4]:27450"), "peer")}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 1, "peers": [1]}',
        '{"version": 1, "peers": [{"node_id": "x", "addresses": ["a:1"]}]}',
        json.dumps({"version": 1, "peers": [{"node_id": PEER, "addresses": ["nowhere"]}]}),
        json.dumps({"version": 1, "peers": [{"node_id": PEER, "addresses": "a:1"}]}),
    ],
)
async def test_a_broken_file_of_peers_is_a_health_line(tmp_path: Path, text: str) -> None:
    clock, path = ManualClock(), tmp_path / "peers.json"
    path.write_text(text)
    book = PeerBook(path, own_node_id=OWN, clock=clock)
    assert await run_briefly(book, clock, lambda: bool(book.health())) == []
    assert str(path) in book.health()[0]


async def test_peers_that_cannot_be_kept_are_a_health_line_and_still_candidates(tmp_path: Path) -> None:
    clock = ManualClock()
    book = PeerBook(tmp_path / "missing" / "peers.json", own_node_id=OWN, clock=clock)
    book.remember(PEER, [ADDRESS])
    found = await run_briefly(book, clock, lambda: bool(book.health()))
    assert found
    assert "cannot be kept" in book.health()[0]


def test_only_well_formed_peers_are_remembered(tmp_path: Path) -> None:
    book = PeerBook(tmp_path / "peers.json", own_node_id=OWN)
    with pytest.raises(ValueError, match="not a node id"):
        book.remember("mac", [ADDRESS])
    with pytest.raises(ValueError, match="no address"):
        book.remember(PEER, [])
    for number in range(300):
        book.remember(f"{number:026d}".translate(str.maketrans("0123456789", "abcdefghij")), [ADDRESS])
    assert len(book.peers()) == 256
