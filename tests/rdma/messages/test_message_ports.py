"""The contract of `MessagePort`, in memory, over a socket and over rings, within one process."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macmesh_rdma.errors import (
    LocalPortError,
    LocalSharedMemoryError,
    RemoteMismatchError,
    RemotePeerLostError,
)
from macmesh_rdma.messages.memory_port import memory_ports
from macmesh_rdma.messages.port import HIGH_WATER_BYTES, MAX_MESSAGE_BYTES, MAX_PENDING_BYTES, MessagePort
from macmesh_rdma.messages.ring_port import CAPACITY_BYTES, RingPort, create_ring
from macmesh_rdma.messages.stream_port import StreamPort

Pair = tuple[MessagePort, MessagePort]
DEADLINE_SECONDS = 120.0
STUCK_BYTES = HIGH_WATER_BYTES + 1024 * 1024
"""More than what a side that takes nothing holds before it stops reading."""


class MakePair(Protocol):
    def __call__(self, max_pending_bytes: int = ..., capacity_bytes: int = ...) -> Pair: ...


@contextmanager
def rings(*capacities: int) -> Iterator[list[int]]:
    made = [create_ring(capacity) for capacity in capacities]
    try:
        yield made
    finally:
        for memory in made:
            os.close(memory)


def ring_pair(
    max_pending_bytes: int = MAX_PENDING_BYTES, capacity_bytes: int = CAPACITY_BYTES
) -> tuple[RingPort, RingPort]:
    ours, theirs = socket.socketpair()
    with rings(capacity_bytes, capacity_bytes) as (there, back):
        return (
            RingPort(ours, outgoing=there, incoming=back, max_pending_bytes=max_pending_bytes),
            RingPort(theirs, outgoing=back, incoming=there, max_pending_bytes=max_pending_bytes),
        )


def stream_pair(
    max_pending_bytes: int = MAX_PENDING_BYTES,
    capacity_bytes: int = CAPACITY_BYTES,  # noqa: ARG001  the system decides
) -> Pair:
    ours, theirs = socket.socketpair()
    return StreamPort(ours, max_pending_bytes=max_pending_bytes), StreamPort(
        theirs, max_pending_bytes=max_pending_bytes
    )


def memory_pair(max_pending_bytes: int = MAX_PENDING_BYTES, capacity_bytes: int = CAPACITY_BYTES) -> Pair:
    return memory_ports(capacity_bytes, max_pending_bytes)


@pytest.fixture(params=[memory_pair, stream_pair, ring_pair], ids=["memory", "socket", "ring"])
def make_pair(request: pytest.FixtureRequest) -> Iterator[MakePair]:
    """Makes pairs on the test's loop; what blocks in it is an error."""

    def make(max_pending_bytes: int = MAX_PENDING_BYTES, capacity_bytes: int = CAPACITY_BYTES) -> Pair:
        pair: Pair = request.param(max_pending_bytes, capacity_bytes)
        return pair

    detector = BlockBuster()
    detector.activate()
    try:
        yield make
    finally:
        detector.deactivate()


def close(*ports: MessagePort) -> None:
    for port in ports:
        port.close()


async def receive(port: MessagePort, count: int) -> list[bytes | None]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [await port.receive() for _ in range(count)]


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_messages_arrive_whole_and_in_order_both_ways(make_pair: MakePair) -> None:
    first, second = make_pair()
    messages = [b"", b"a", b"", bytes(range(256)) * 7, os.urandom(70_000), b"", b"end"]
    for message in messages:
        first.send(message)
        second.send(message[::-1])

    assert await receive(second, len(messages)) == messages
    assert await receive(first, len(messages)) == [message[::-1] for message in messages]
    close(first, second)


async def test_a_long_message_passes_a_small_carrier(make_pair: MakePair) -> None:
    first, second = make_pair(capacity_bytes=4096)
    long = os.urandom(1_000_003)
    first.send(b"before")
    first.send(long)
    first.send(b"after")

    assert await receive(second, 3) == [b"before", long, b"after"]
    async with asyncio.timeout(DEADLINE_SECONDS):
        await first.flush()
    assert first.pending_bytes == 0
    close(first, second)


async def test_the_longest_message_passes_and_a_longer_one_is_refused(make_pair: MakePair) -> None:
    first, second = make_pair()
    longest = bytes(MAX_MESSAGE_BYTES)
    with pytest.raises(LocalPortError, match="over the limit"):
        first.send(longest + b"1")
    first.send(longest)
    assert await receive(second, 1) == [longest]
    close(first, second)


async def test_drain_waits_for_a_side_that_takes_nothing(make_pair: MakePair) -> None:
    first, second = make_pair()
    sent = 0
    while first.pending_bytes <= STUCK_BYTES:
        first.send(sent.to_bytes(2, "big") * 500)
        sent += 1
    draining, flushing = asyncio.create_task(first.drain()), asyncio.create_task(first.flush())
    await turns()
    assert not draining.done()

    got = await receive(second, sent)
    assert got == [number.to_bytes(2, "big") * 500 for number in range(sent)]
    async with asyncio.timeout(DEADLINE_SECONDS):
        await draining
        await flushing
    assert first.pending_bytes == 0
    close(first, second)


async def test_a_side_that_takes_nothing_cannot_fill_our_memory(make_pair: MakePair) -> None:
    first, second = make_pair(max_pending_bytes=100_000)
    message = bytes(1000)
    while first.pending_bytes + len(message) < 99_000:
        first.send(message)
    with pytest.raises(LocalPortError, match="takes nothing"):
        first.send(message * 3)
    first.send(b"a small one")
    assert 0 < first.pending_bytes <= 100_000
    close(first, second)


async def test_close_is_told_after_everything_that_was_sent(make_pair: MakePair) -> None:
    first, second = make_pair()
    first.send(b"last words")
    first.close()
    first.close()

    assert await receive(second, 3) == [b"last words", None, None]
    with pytest.raises(LocalPortError, match="closed"):
        first.send(b"")
    with pytest.raises(LocalPortError, match="closed"):
        await first.receive()
    with pytest.raises(LocalPortError, match="closed"):
        await first.drain()
    with pytest.raises(RemotePeerLostError):
        second.send(b"too late")
    with pytest.raises(RemotePeerLostError):
        await second.drain()
    second.close()


async def test_close_ends_our_own_waits(make_pair: MakePair) -> None:
    first, second = make_pair()
    while first.pending_bytes <= STUCK_BYTES:
        first.send(bytes(1000))
    waits = [asyncio.create_task(first.receive()), asyncio.create_task(first.flush())]
    await turns()
    first.close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        done = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(error) for error in done] == [LocalPortError] * 2
    second.close()


async def test_close_with_messages_queued_is_no_orderly_end(make_pair: MakePair) -> None:
    first, second = make_pair()
    first.send(b"passes")
    first.send(bytes(4 * 1024 * 1024))
    first.send(b"never passes")
    assert first.pending_bytes
    first.close()
    assert await receive(second, 1) == [b"passes"]
    with pytest.raises(RemotePeerLostError, match="has gone"):
        await receive(second, 2)
    second.close()


async def test_close_of_the_other_side_ends_our_waits(make_pair: MakePair) -> None:
    first, second = make_pair()
    while first.pending_bytes <= STUCK_BYTES:
        first.send(bytes(1000))
    draining, receiving = asyncio.create_task(first.drain()), asyncio.create_task(first.receive())
    await turns()
    second.close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await receiving is None
        with pytest.raises(RemotePeerLostError):
            await draining
    first.close()


async def test_a_cancelled_receive_loses_nothing(make_pair: MakePair) -> None:
    first, second = make_pair()
    for number in range(300):
        waiting = asyncio.create_task(second.receive())
        if number % 3:
            await turns(number % 3)
        first.send(number.to_bytes(2, "big"))
        await turns(number % 5)
        waiting.cancel()
        async with asyncio.timeout(DEADLINE_SECONDS):
            [got] = await asyncio.gather(waiting, return_exceptions=True)
            if isinstance(got, asyncio.CancelledError):
                got = await second.receive()
        assert got == number.to_bytes(2, "big")
    close(first, second)


async def test_only_one_task_receives(make_pair: MakePair) -> None:
    first, second = make_pair()
    waiting = asyncio.create_task(second.receive())
    await turns()
    with pytest.raises(LocalPortError, match="two tasks"):
        await second.receive()
    first.send(b"x")
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await waiting == b"x"
    close(first, second)


async def test_messages_that_are_there_do_not_starve_other_tasks(make_pair: MakePair) -> None:
    first, second = make_pair()
    for _ in range(1000):
        first.send(b"x")
    await turns()
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    beating = asyncio.create_task(beat())
    await receive(second, 1000)
    beating.cancel()
    assert beats >= 10
    close(first, second)


async def test_threads_send_while_the_loop_receives_and_sends(make_pair: MakePair) -> None:
    first, second = make_pair(capacity_bytes=4096)
    count, threads = 2000, 3

    def send(name: int) -> None:
        for number in range(count):
            first.send(bytes([name]) + number.to_bytes(2, "big") + bytes(number % 90))

    senders = [threading.Thread(target=send, args=(name,)) for name in range(threads)]
    for sender in senders:
        sender.start()
    send(threads)
    next_number = dict.fromkeys(range(threads + 1), 0)
    for message in await receive(second, count * (threads + 1)):
        assert message is not None
        name, number = message[0], int.from_bytes(message[1:3], "big")
        assert number == next_number[name]
        assert len(message) == 3 + number % 90
        next_number[name] += 1
    assert set(next_number.values()) == {count}
    for sender in senders:
        sender.join(DEADLINE_SECONDS)
    close(first, second)


@pytest.mark.parametrize("make", [stream_pair, ring_pair, memory_pair])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.booleans(), st.one_of(st.integers(0, 40), st.integers(900, 1100), st.integers(0, 20_000))
        ),
        max_size=60,
    )
)
def test_any_mix_of_sends_and_receives(
    make: Callable[[int, int], Pair], steps: list[tuple[bool, int]]
) -> None:
    async def play() -> None:
        first, second = make(MAX_PENDING_BYTES, 4096)
        expected: list[bytes] = []
        for index, (send, size) in enumerate(steps):
            if send or not expected:
                expected.append(index.to_bytes(2, "big") * (size // 2))
                first.send(expected[-1])
            else:
                assert await receive(second, 1) == [expected.pop(0)]
        assert await receive(second, len(expected)) == expected
        close(first, second)

    asyncio.run(play())


async def test_a_dead_fake_is_lost() -> None:
    first, second = memory_ports()
    first.send(b"x")
    first.die()
    assert await receive(second, 1) == [b"x"]
    with pytest.raises(RemotePeerLostError):
        await receive(second, 1)
    second.close()


async def test_garbage_on_the_socket_is_told_once_and_for_all() -> None:
    ours, theirs = socket.socketpair()
    port = StreamPort(ours)
    theirs.sendall(b"\0\0\0\1x" + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big") + bytes(100))
    assert await receive(port, 1) == [b"x"]
    for _ in range(2):
        with pytest.raises(RemoteMismatchError, match="over the limit"):
            await receive(port, 1)
    close(port)
    theirs.close()


async def test_a_cut_frame_on_the_socket_is_a_death() -> None:
    ours, theirs = socket.socketpair()
    port = StreamPort(ours)
    theirs.sendall(b"\0\0\0\5abc")
    theirs.close()
    with pytest.raises(RemotePeerLostError):
        await receive(port, 1)
    port.close()


async def test_hostile_memory_is_told_once_and_for_all() -> None:
    ours, theirs = socket.socketpair()
    with rings(4096, 4096) as (there, back):
        port = RingPort(ours, outgoing=there, incoming=back)
        # Position of the producer, which claims to have written more than the ring holds.
        os.pwrite(back, (1 << 40).to_bytes(8, "little"), 128)
        for _ in range(2):
            with pytest.raises(RemoteMismatchError, match="ring port is broken"):
                await receive(port, 1)
        # Position of the consumer, which claims to have read what was never written.
        os.pwrite(there, (1 << 40).to_bytes(8, "little"), 256)
        with pytest.raises(RemoteMismatchError, match="ring port is broken"):
            port.send(b"x")
    port.close()
    theirs.close()


async def test_memory_that_is_no_free_ring_of_this_build_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with rings(4096, 4096, 4096) as (there, back, other):
        port = RingPort(ours, outgoing=there, incoming=back)
        with pytest.raises(LocalSharedMemoryError, match="already has a producer"):
            RingPort(theirs, outgoing=there, incoming=other)
        os.pwrite(other, (99).to_bytes(4, "little"), 8)
        with pytest.raises(LocalSharedMemoryError, match="layout 99"):
            RingPort(theirs, outgoing=back, incoming=other)
        os.ftruncate(other, 100)
        with pytest.raises(LocalSharedMemoryError, match="too small"):
            RingPort(theirs, outgoing=other, incoming=back)
    port.close()
    theirs.close()


async def test_a_busy_side_is_not_woken_for_each_message() -> None:
    first, second = ring_pair()
    for _ in range(1000):
        first.send(bytes(60))
    assert first.rung == 0  # it never slept, for it never looked
    await receive(second, 1000)
    sleeping = asyncio.create_task(second.receive())
    await turns()
    for _ in range(1000):
        first.send(bytes(60))
    assert first.rung == 1
    assert await sleeping == bytes(60)
    await receive(second, 999)
    assert second.rung == 0
    close(first, second)


def test_a_ring_of_an_odd_capacity_is_refused() -> None:
    for capacity in (0, 128, 5000, 1 << 31):
        with pytest.raises(ValueError, match="power of two"):
            create_ring(capacity)
