"""What ``MdnsDiscovery`` decides, in virtual time on a fake session."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from daemon.discovery.fake_session import FakeMulticast
from macmesh_daemon.clock import ManualClock
from macmesh_daemon.discovery import (
    Advertisement,
    Candidate,
    Hints,
    InterfaceAddress,
    InterfaceChoice,
    LocalAdvertisementError,
    MdnsDiscovery,
)
from macmesh_daemon.discovery.session import ResolvedService

OWN, PEER, OTHER = "a" * 26, "b" * 26, "c" * 26
HINTS = Hints(protocol_version=1, cluster_prefix="0123abcd", ram_bytes=1 << 36, chip="Apple M4")


def advertisement(node_id: str, cluster: str = "0123abcd") -> Advertisement:
    return Advertisement(node_id, 27450, replace(HINTS, cluster_prefix=cluster))


class World:
    """A discovery that runs on a fake network in virtual time."""

    def __init__(self, *, only_own_cluster: bool = True) -> None:
        self.network = FakeMulticast()
        self.clock = ManualClock()
        self.found: list[Candidate] = []
        self.discovery = MdnsDiscovery(
            advertisement(OWN),
            announce_interval_seconds=15,
            lonely_interval_seconds=5,
            only_own_cluster=only_own_cluster,
            clock=self.clock,
            rng=random.Random(1),  # noqa: S311  a test's own
            open_session=self.network.open_session,
            read_interfaces=self.network.read_interfaces,
        )

    @property
    def calls(self) -> list[str]:
        return [call for session in self.network.sessions for call in session.calls]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.discovery.run(self.found.append))
            await self.clock.settle()
            yield
            assert not task.done()
            task.cancel()


@pytest.fixture
def world() -> World:
    return World()


async def test_a_node_alone_announces_and_asks_every_five_seconds(world: World) -> None:
    async with world.running():
        await world.clock.advance(61)
        announcements = world.calls.count("announce")
        assert 10 <= announcements <= 15
        assert world.calls.count("browse") == announcements + 1


async def test_a_node_with_peers_does_so_every_fifteen(world: World) -> None:
    world.network.put(advertisement(PEER))
    async with world.running():
        await world.clock.advance(301)
        assert 16 <= world.calls.count("announce") <= 26


async def test_a_node_that_misses_a_coordinator_hurries_though_it_knows_peers(world: World) -> None:
    world.network.put(advertisement(PEER))
    async with world.running():
        await world.clock.advance(20)
        before = world.calls.count("announce")
        world.discovery.set_lonely(lonely=True)
        await world.clock.settle()
        assert world.calls.count("announce") == before + 1
        await world.clock.advance(60)
        assert world.calls.count("announce") - before >= 10


async def test_the_beat_is_due_at_once_after_sleep(world: World) -> None:
    world.network.put(advertisement(PEER))
    async with world.running():
        await world.clock.advance(7)
        before = world.calls.count("announce")
        world.clock.suspend(3600)
        await world.clock.advance(2.1)
        assert world.calls.count("announce") == before + 1


async def test_what_is_known_is_reported_again_on_each_beat(world: World) -> None:
    world.network.put(advertisement(PEER))
    async with world.running():
        await world.clock.advance(100)
    expected = Candidate(PEER, ("10.0.0.2:27450",), "mdns", HINTS)
    assert len(world.found) >= 5
    assert set(world.found) == {expected}


async def test_a_goodbye_is_no_candidate_and_makes_lonely_again(world: World) -> None:
    world.network.put(advertisement(PEER))
    async with world.running():
        await world.clock.advance(1)
        (session,) = world.network.sessions
        del world.network.services[PEER]
        assert session.seen is not None
        session.seen(PEER, True)  # noqa: FBT003  the callback's own form
        count = len(world.found)
        await world.clock.advance(61)
        assert len(world.found) == count
        assert world.calls.count("announce") >= 9


async def test_foreign_clusters_and_the_node_itself_are_not_reported(world: World) -> None:
    world.network.put(advertisement(OWN))
    world.network.put(advertisement(PEER, cluster="deadbeef"))
    world.network.put(Advertisement(OTHER, 1, replace(HINTS, state="leaving")))
    async with world.running():
        await world.clock.advance(30)
    assert world.found == []


async def test_one_who_wants_to_join_sees_every_cluster() -> None:
    world = World(only_own_cluster=False)
    world.network.put(advertisement(PEER, cluster="deadbeef"))
    async with world.running():
        await world.clock.advance(1)
    assert [candidate.node_id for candidate in world.found] == [PEER]


@pytest.mark.parametrize(
    ("addresses", "dialled"),
    [
        (("10.0.0.2", "10.1.0.2"), ("10.0.0.2:27450", "10.1.0.2:27450")),
        (("fe80::2", "fe80::2%4"), ("[fe80::2%4]:27450",)),
        (("0.0.0.0", "224.0.0.251", "::", "ff02::fb", "junk", "fd00::2"), ("[fd00::2]:27450",)),  # noqa: S104
        (tuple(f"10.0.1.{n}" for n in range(50)), tuple(f"10.0.1.{n}:27450" for n in range(8))),
        (("0.0.0.0",), None),  # noqa: S104  what a stranger announces
    ],
)
async def test_only_addresses_that_lead_somewhere_are_kept(
    world: World, addresses: tuple[str, ...], dialled: tuple[str, ...] | None
) -> None:
    world.network.put(advertisement(PEER), addresses)
    async with world.running():
        await world.clock.advance(0.1)
    assert [candidate.addresses for candidate in world.found] == ([dialled] if dialled else [])


@pytest.mark.parametrize(
    "service",
    [
        ResolvedService(("10.0.0.2",), 0, {}, 0),
        ResolvedService(("10.0.0.2",), 27450, {}, 0),
        ResolvedService(("10.0.0.2",), 27450, {b"v": b"1", b"id": b"\xff" * 200, b"cl": None}, 300),
        ResolvedService(("10.0.0.2",), 27450, {b"v": b"1", b"id": PEER.encode(), b"cl": b"0123abcd"}, 60_000),
    ],
)
async def test_malformed_announcements_are_dropped(world: World, service: ResolvedService) -> None:
    world.network.services[PEER] = service
    world.network.services["../../etc/passwd\x1b[2J"] = service
    async with world.running():
        await world.clock.advance(10)
        assert world.discovery.health() == ()
    assert world.found == []


async def test_a_flood_of_names_does_not_grow_the_memory(world: World) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    async with world.running():
        (session,) = world.network.sessions
        assert session.seen is not None
        for number in range(5000):
            name = letters[number % 32] + letters[number // 32 % 32] + letters[number // 1024] + "d" * 23
            world.network.put(advertisement(name))
            session.seen(name, False)  # noqa: FBT003  the callback's own form
        assert world.discovery._pending.qsize() <= 256
        await world.clock.advance(1)
        world.network.put(advertisement(PEER))
        session.seen(PEER, False)  # noqa: FBT003  the callback's own form
        await world.clock.settle()
        assert world.found[-1].node_id == PEER
        assert len(world.discovery._book) <= 256
        assert len(world.discovery._queued) == 0


async def test_without_an_interface_it_waits_for_one(world: World) -> None:
    chosen = world.network.choice
    world.network.choice = InterfaceChoice(())
    async with world.running():
        await world.clock.advance(5)
        (line,) = world.discovery.health()
        assert "no address on any usable network interface" in line
        assert world.network.sessions == []
        world.network.choice = chosen
        await world.clock.advance(2.1)
        assert world.discovery.health() == ()
        assert world.calls[:1] == ["open 10.0.0.1"]


async def test_new_addresses_are_bound_and_announced_within_the_poll(world: World) -> None:
    async with world.running():
        await world.clock.advance(0.5)
        more = InterfaceAddress("bridge0", "169.254.1.1", 9)
        world.network.choice = InterfaceChoice((*world.network.choice.addresses, more))
        await world.clock.advance(2.1)
        assert world.calls == ["open 10.0.0.1", "browse", "rebind 10.0.0.1,169.254.1.1", "announce", "browse"]


async def test_another_address_family_opens_the_sockets_anew(world: World) -> None:
    async with world.running():
        await world.clock.advance(0.5)
        world.network.choice = InterfaceChoice((InterfaceAddress("en0", "fe80::1", 4),))
        await world.clock.advance(2.1)
        assert world.calls == ["open 10.0.0.1", "browse", "close", "open fe80::1", "browse"]
        world.network.choice = InterfaceChoice(())
        await world.clock.advance(2.1)
        assert "no address" in world.discovery.health()[0]


@pytest.mark.parametrize("method", ["read_interfaces", "open", "announce", "browse"])
@pytest.mark.parametrize(
    "fault", [OSError(98, "Address already in use"), RuntimeError("library"), TimeoutError()]
)
async def test_any_fault_is_a_health_line_and_tried_again(
    world: World, method: str, fault: Exception
) -> None:
    world.network.put(advertisement(PEER))
    world.network.faults[method] = fault
    async with world.running():
        await world.clock.advance(30)
        (line,) = world.discovery.health()
        assert line.startswith("mDNS does not work: ")
        assert type(fault).__name__ in line
        assert all(session.calls[-1] == "close" for session in world.network.sessions[:-1])
        world.network.faults.clear()
        world.found.clear()
        await world.clock.advance(10)
        assert world.discovery.health() == ()
        assert world.found


async def test_a_service_that_cannot_be_resolved_does_not_disturb_the_others(world: World) -> None:
    world.network.put(advertisement(PEER))
    world.network.faults["resolve"] = ValueError("malformed record")
    async with world.running():
        await world.clock.advance(20)
        assert world.found == []
        assert world.discovery.health() == ()
        assert len(world.network.sessions) == 1
        world.network.faults.clear()
        await world.clock.advance(7)
        assert [candidate.node_id for candidate in world.found[:1]] == [PEER]


async def test_a_session_that_cannot_be_closed_is_left_behind(world: World) -> None:
    world.network.faults = {"announce": OSError("gone"), "close": OSError("worse")}
    async with world.running():
        await world.clock.advance(10)
        world.network.faults.clear()
        await world.clock.advance(10)
        assert world.discovery.health() == ()


async def test_announcements_that_are_not_heard_are_a_health_line(world: World) -> None:
    world.network.hears = False
    async with world.running():
        await world.clock.advance(3)
        assert "does not hear its own announcement" in world.discovery.health()[0]
        world.network.hears = True
        await world.clock.advance(3)
        assert world.discovery.health() == ()


async def test_a_session_that_does_not_hear_itself_is_opened_anew_ever_more_seldom(world: World) -> None:
    """Sockets made while an address was still tentative stay deaf; where multicast is blocked, so do new ones."""
    world.network.hears = False
    async with world.running():
        await world.clock.advance(10)
        soon = len(world.network.sessions)
        assert soon >= 2
        await world.clock.advance(600)
        assert 5 <= len(world.network.sessions) - soon <= 20
        world.network.hears = True
        await world.clock.advance(130)
        count = len(world.network.sessions)
        assert world.discovery.health() == ()
        await world.clock.advance(300)
        assert len(world.network.sessions) == count


async def test_a_changed_advertisement_is_sent_at_once(world: World) -> None:
    async with world.running():
        await world.clock.advance(0.5)
        changed = replace(advertisement(OWN), hints=replace(HINTS, usable_bytes=5))
        world.discovery.advertise(changed)
        await world.clock.settle()
        assert world.network.sessions[0].announced[-1] == changed
        with pytest.raises(LocalAdvertisementError):
            world.discovery.advertise(replace(changed, hints=replace(HINTS, host_id="x" * 500)))
        await world.clock.advance(20)
        assert world.network.sessions[0].announced[-1] == changed


async def test_stopping_says_goodbye(world: World) -> None:
    async with world.running():
        await world.clock.advance(1)
    assert world.calls[-1] == "close"
    count = len(world.found)
    await world.clock.advance(60)
    assert len(world.found) == count
