"""The contract of `ControlLane`, in memory and over TLS sockets."""

import asyncio
from pathlib import Path

import pytest

from control_ranks import QUICK, Fabric, bound, pair
from macmesh_rdma.control.lane import ControlLane
from macmesh_rdma.errors import (
    LocalAddressError,
    LocalLaneFullError,
    LocalLaneStateError,
    RemoteAuthenticationError,
    RemotePeerLostError,
)


@pytest.fixture(params=["memory", "socket"])
def fabric(request: pytest.FixtureRequest, tmp_path: Path) -> Fabric:
    return Fabric(request.param, tmp_path)


async def test_messages_arrive_whole_and_in_order_in_both_directions(fabric: Fabric) -> None:
    async with pair(fabric) as (first, second):
        sent = [bytes([index]) * size for index, size in enumerate([0, 1, 100, 65_536, 900_000, 3])]
        for message in sent:
            await first.lane.send(1, message)
            await second.lane.send(0, message)
        assert [await second.messages.get() for _ in sent] == [(0, message) for message in sent]
        assert [await first.messages.get() for _ in sent] == [(1, message) for message in sent]
        await first.lane.flush(1)
        assert not first.lost


async def test_three_ranks_in_a_ring_each_with_both_connections(fabric: Fabric) -> None:
    ranks = [fabric.rank(number) for number in range(3)]
    async with bound(ranks), asyncio.TaskGroup() as group:
        for rank in ranks:
            group.create_task(rank.lane.connect((rank.number + 1) % 3, ranks[(rank.number + 1) % 3].address))
        for rank in ranks:
            await rank.lane.wait_for((rank.number - 1) % 3)
        for rank in ranks:
            for other in {0, 1, 2} - {rank.number}:
                rank.lane.send_now(other, b"%d>%d" % (rank.number, other))
        for rank in ranks:
            got = sorted([await rank.messages.get() for _ in range(2)])
            assert got == [
                (other, b"%d>%d" % (other, rank.number)) for other in range(3) if other != rank.number
            ]


async def test_misuse_is_told(fabric: Fabric) -> None:
    rank = fabric.rank(0)
    with pytest.raises(LocalLaneStateError):
        await rank.lane.connect(1, "127.0.0.1:1")
    async with asyncio.TaskGroup() as group:
        with pytest.raises(LocalAddressError, match="cannot listen"):
            await fabric.rank(0).lane.bind("192.0.2.1", group)
    async with pair(fabric) as (first, second):
        with pytest.raises(LocalLaneStateError, match="no connection to rank 2"):
            first.lane.send_now(2, b"x")
        with pytest.raises(LocalLaneStateError, match="connected already"):
            await first.lane.connect(1, second.address)
        with pytest.raises(LocalLaneFullError, match="limit"):
            first.lane.send_now(1, bytes(QUICK.max_message_bytes))
        await first.lane.close()
        await first.lane.close()
        with pytest.raises(LocalLaneStateError, match="ended"):
            first.lane.send_now(1, b"x")
        with pytest.raises(LocalLaneStateError, match="ended"):
            await first.lane.wait_for(1)


def fill(lane: ControlLane) -> int:
    """Sends to rank 1 until that is refused; returns how many messages went."""
    for index in range(100):
        try:
            lane.send_now(1, bytes([index]) * 900_000)
        except LocalLaneFullError:
            with pytest.raises(LocalLaneFullError, match="wait already"):
                lane.send_now(1, bytes(900_000))
            return index
    raise AssertionError("nothing was refused")


async def test_a_full_queue_refuses_at_once_or_waits_for_room(fabric: Fabric) -> None:
    # Within one turn of the loop the other side cannot read.
    async with pair(fabric) as (first, second):
        sent = fill(first.lane)
        assert 2 <= sent < 20
        await first.lane.send(1, b"waited" * 100_000)
        got = [await second.messages.get() for _ in range(sent + 1)]
        assert [message[:1] for _, message in got] == [*(bytes([index]) for index in range(sent)), b"w"]


async def test_a_rank_that_goes_is_told_once_and_ends_the_lane(fabric: Fabric) -> None:
    ranks = [fabric.rank(number) for number in range(3)]
    async with bound(ranks):
        for number in (1, 2):
            await ranks[0].lane.connect(number, ranks[number].address)
        await ranks[1].lane.close()
        await ranks[0].lost_once.wait()
        with pytest.raises(LocalLaneStateError, match="rank 1 was lost"):
            ranks[0].lane.send_now(2, b"x")
        await ranks[2].lane.close()
        with pytest.raises(LocalLaneStateError):
            await ranks[0].lane.wait_for(1)
    assert [rank for rank, _ in ranks[0].lost] == [1]


async def test_last_words_pass_what_waits_and_reach_everybody(fabric: Fabric) -> None:
    ranks = [fabric.rank(number) for number in range(3)]
    async with bound(ranks):
        await ranks[0].lane.connect(1, ranks[1].address)
        await ranks[2].lane.connect(0, ranks[0].address)
        await ranks[0].lane.wait_for(2)
        await ranks[0].lane.say_last(b"on fire", 5)
        for other in ranks[1:]:
            assert await other.messages.get() == (0, b"on fire")
            await other.lost_once.wait()
        assert not ranks[0].lost
        with pytest.raises(LocalLaneStateError):
            ranks[0].lane.send_now(1, b"x")


async def test_strangers_are_turned_away_and_told(fabric: Fabric) -> None:
    first, second = fabric.rank(0), fabric.rank(1)
    ignorant, outsider = fabric.rank(2, secret=b"guess"), fabric.rank(-1)
    async with bound([first, second, ignorant, outsider]):
        for stranger in (ignorant, outsider):
            with pytest.raises(RemotePeerLostError):
                await stranger.lane.connect(0, first.address)
        assert "secret" in await first.strangers.get()
        assert "outsider" in await first.strangers.get()
        with pytest.raises(RemoteAuthenticationError, match="expected rank 1, met rank-2"):
            await first.lane.connect(1, ignorant.address)
        # None of this did any harm, and one rank calls once.
        await second.lane.connect(0, first.address)
        await first.lane.wait_for(1)
        twin = fabric.rank(1)
        async with bound([twin]):
            with pytest.raises(RemotePeerLostError):
                await twin.lane.connect(0, first.address)
        assert "connected already" in await first.strangers.get()
        second.lane.send_now(0, b"still here")
        assert await first.messages.get() == (1, b"still here")
        assert not first.lost


async def test_connecting_waits_for_one_that_does_not_listen_yet(fabric: Fabric) -> None:
    first, second = fabric.rank(0), fabric.rank(1)
    async with bound([first]):
        nobody = fabric.network.new_address() if fabric.kind == "memory" else "127.0.0.1:9"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await first.lane.connect(1, nobody)
        async with bound([second]):
            await first.lane.connect(1, second.address)
