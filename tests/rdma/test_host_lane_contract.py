"""The contract of `HostLane`, in memory and over our own groups, with the ranks as threads of one process."""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import mlx.core as mx
import pytest

from bringing_up import EPOCH, KEY, SMALL, endpoints_of, in_threads, listeners
from macmesh_rdma.errors import (
    LocalLaneStateError,
    RemoteAbortedError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.group import Group, open_group
from macmesh_rdma.group_host_lane import GroupHostLane
from macmesh_rdma.host_lane import MOST_MESSAGE_BYTES, HostLane
from macmesh_rdma.options import LinkOptions
from macmesh_rdma.testing.memory_host_lane import memory_host_lanes

SECONDS = 60.0
Lanes = list[HostLane]


@contextlib.contextmanager
def group_lanes(
    size: int, provider: Literal["shm", "tcp"], options: LinkOptions = SMALL
) -> Iterator[list[HostLane]]:
    with listeners(size) as made:
        endpoints = endpoints_of(made)

        def join(rank: int) -> Group:
            return open_group(
                made[rank],
                rank,
                endpoints,
                key=KEY,
                epoch=EPOCH,
                options=options,
                provider=provider,
                lanes=(0,),
                measure=False,
            )

        outcomes = in_threads([lambda rank=rank: join(rank) for rank in range(size)])  # type: ignore[misc]  # bound
        lanes: list[HostLane] = [GroupHostLane(group) for group in outcomes]
        try:
            yield lanes
        finally:
            in_threads([lane.close for lane in lanes])


@pytest.fixture(params=["memory", "shm", "tcp"])
def lanes(request: pytest.FixtureRequest) -> Iterator[Lanes]:
    """Those of three ranks."""
    if request.param == "memory":
        yield list(memory_host_lanes(3))
    else:
        with group_lanes(3, request.param) as made:
            yield made


def sample(shape: tuple[int, ...], dtype: mx.Dtype, seed: int = 0) -> mx.array:
    array = (mx.random.normal(shape, key=mx.random.key(seed)) * 50).astype(dtype)
    mx.eval(array)
    return array


PARCELS: list[list[mx.array]] = [
    [sample((1, 1, 3072), mx.bfloat16, 1)],
    [sample((2, 5), mx.float16, 2), sample((0, 4), mx.float32), sample((), mx.int32, 3)],
    [],
    [sample((0,), mx.bfloat16)],
    [sample((1, 700, 300), mx.bfloat16, 4), sample((3,), mx.uint8, 5), sample((0,), mx.int8)],
    [sample((9000,), mx.float32, 6), sample((7, 7), mx.bool_, 7), sample((11,), mx.complex64, 8)],
]


def same(came: list[mx.array], wanted: list[mx.array]) -> bool:
    return len(came) == len(wanted) and all(
        a.dtype == b.dtype and a.shape == b.shape and bool(mx.array_equal(a, b).item())
        for a, b in zip(came, wanted, strict=True)
    )


def blanks(like: list[mx.array]) -> list[mx.array]:
    made = [mx.zeros(array.shape, array.dtype) for array in like]
    mx.eval(made)
    return made


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    outcomes = in_threads(calls)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def error_of(call: Callable[[], Any]) -> TransportError:
    with pytest.raises(TransportError) as raised:
        call()
    return raised.value


def test_arrays_and_messages_arrive_unchanged_and_in_order(lanes: Lanes) -> None:
    def send() -> None:
        for index, parcel in enumerate(PARCELS):
            lanes[0].send(2, parcel, SECONDS)
            lanes[0].send_message(2, b"%d" % index * index * 30_000, SECONDS)
            lanes[0].send(2, parcel, SECONDS)

    def receive() -> None:
        for index, parcel in enumerate(PARCELS):
            assert same(lanes[2].receive(0, SECONDS), parcel)
            assert lanes[2].receive_message(0, None) == b"%d" % index * index * 30_000
            into = blanks(parcel)
            lanes[2].receive_into(0, into, SECONDS)
            assert same(into, parcel)

    at_once(send, receive)


def test_what_was_described_on_a_placeholder_computes_with_what_came(lanes: Lanes) -> None:
    placeholder, given = blanks(PARCELS[0]), PARCELS[0]
    for _ in range(2):
        described = placeholder[0] * 2 + 1
        at_once(
            functools.partial(lanes[1].send, 0, given, SECONDS),
            lambda: lanes[0].receive_into(1, placeholder, SECONDS),
        )
        assert same([described], [given[0] * 2 + 1])
        given = [sample((1, 1, 3072), mx.bfloat16, 9)]


def test_every_direction_at_once(lanes: Lanes) -> None:
    def send(rank: int, peer: int) -> None:
        for number in range(40):
            lanes[rank].send(peer, [mx.array([rank, peer, number])], SECONDS)
            lanes[rank].send(peer, PARCELS[4], SECONDS)

    def receive(rank: int, peer: int) -> None:
        for number in range(40):
            assert lanes[rank].receive(peer, SECONDS)[0].tolist() == [peer, rank, number]
            assert same(lanes[rank].receive(peer, SECONDS), PARCELS[4])

    pairs = [(0, 1), (1, 0), (1, 2), (2, 1), (2, 0), (0, 2)]
    at_once(
        *(lambda pair=pair: send(*pair) for pair in pairs),
        *(lambda pair=pair: receive(*pair) for pair in pairs),
    )


def test_many_small_messages(lanes: Lanes) -> None:
    def send() -> None:
        for number in range(2000):
            lanes[0].send_message(1, b"%d" % number, SECONDS)

    def receive() -> None:
        for number in range(2000):
            assert lanes[1].receive_message(0, SECONDS) == b"%d" % number

    at_once(send, receive)


def test_wrong_calls_fail_alone(lanes: Lanes) -> None:
    lazy = mx.ones(3) * 2
    turned = sample((3, 4), mx.float32).T
    mx.eval(turned)
    for bad, words in (([lazy], "not evaluated"), ([turned], "row-contiguous")):
        for call in (lanes[0].send, lanes[0].receive_into):
            error = error_of(lambda call=call, bad=bad: call(1, bad, SECONDS))  # type: ignore[misc]  # bound
            assert type(error) is LocalLaneStateError
            assert words in str(error)
    for peer in (0, 3, -1):
        error = error_of(lambda peer=peer: lanes[0].send_message(peer, b"x", SECONDS))  # type: ignore[misc]  # bound
        assert type(error) is LocalLaneStateError
    error = error_of(lambda: lanes[0].send_message(1, bytes(MOST_MESSAGE_BYTES + 1), SECONDS))
    assert type(error) is LocalLaneStateError
    for seconds in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="timeout_seconds"):
            lanes[0].receive(1, seconds)
    at_once(
        lambda: lanes[0].send_message(1, b"fine", SECONDS),
        lambda: lanes[1].receive_message(0, SECONDS) == b"fine",
    )


@pytest.mark.parametrize("expected", [[sample((2, 3), mx.bfloat16)], [sample((3, 2), mx.float16)], []])
def test_other_arrays_than_expected_are_an_error_on_both_sides(
    lanes: Lanes, expected: list[mx.array]
) -> None:
    def send() -> TransportError:
        lanes[0].send(1, [sample((3, 2), mx.bfloat16)], SECONDS)
        return error_of(lambda: lanes[0].receive_message(1, SECONDS))

    def receive() -> TransportError:
        return error_of(lambda: lanes[1].receive_into(0, expected, SECONDS))

    for error, peer in zip(in_threads([send, receive]), (1, 0), strict=True):
        assert isinstance(error, RemoteMismatchError), error
        assert "(3, 2)" in str(error)
        assert error.peer == peer
    assert isinstance(error_of(lambda: lanes[1].send_message(0, b"x", SECONDS)), RemoteMismatchError)


def test_a_message_where_arrays_are_expected_is_a_mismatch(lanes: Lanes) -> None:
    lanes[0].send_message(1, b"x", SECONDS)
    assert isinstance(error_of(lambda: lanes[1].receive(0, SECONDS)), RemoteMismatchError)


def test_a_silent_peer_is_an_error_at_the_deadline_of_the_call(lanes: Lanes) -> None:
    began = time.monotonic()
    error = error_of(lambda: lanes[0].receive(1, 0.1))
    assert isinstance(error, RemoteTimeoutError)
    assert error.peer == 1
    assert 0.1 <= time.monotonic() - began < SECONDS
    # The others learn of it; nothing hangs that has no deadline.
    assert isinstance(error_of(lambda: lanes[1].receive_message(0, None)), TransportError)


class Waiting:
    """A thread that waits for a message without a deadline."""

    def __init__(self, lane: HostLane, peer: int) -> None:
        self.came: bytes | TransportError | None = None
        self.cpu_seconds = 0.0
        self._thread = threading.Thread(target=self._wait, args=(lane, peer))
        self._thread.start()
        time.sleep(0.2)  # it waits by then; no outcome depends on it

    def _wait(self, lane: HostLane, peer: int) -> None:
        try:
            self.came = lane.receive_message(peer, None)
        except TransportError as error:
            self.came = error
        self.cpu_seconds = time.thread_time()

    def end(self) -> bytes | TransportError | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.came


def test_a_wait_without_a_deadline_costs_no_processor_time_and_ends_by_an_abort(lanes: Lanes) -> None:
    waits = Waiting(lanes[0], 1)
    lanes[0].abort("enough")
    error = waits.end()
    assert type(error) is LocalLaneStateError
    assert "enough" in str(error)
    assert waits.cpu_seconds < 0.1
    other = error_of(lambda: lanes[1].receive_message(0, None))
    assert isinstance(other, RemoteAbortedError)
    assert "enough" in str(other)


def test_a_wait_ends_when_the_lane_is_closed_on_either_side(lanes: Lanes) -> None:
    here, there = Waiting(lanes[0], 1), Waiting(lanes[1], 0)
    lanes[0].close()
    assert type(here.end()) is LocalLaneStateError
    assert type(there.end()) is RemotePeerLostError
    lanes[0].close()
    assert type(error_of(lambda: lanes[0].send_message(1, b"x", SECONDS))) is LocalLaneStateError


def test_what_was_sent_before_the_end_still_arrives(lanes: Lanes) -> None:
    lanes[0].send_message(2, b"last", SECONDS)
    lanes[0].close()
    assert lanes[2].receive_message(0, SECONDS) == b"last"
    assert type(error_of(lambda: lanes[2].receive_message(0, SECONDS))) is RemotePeerLostError


def test_a_second_thread_in_one_direction_is_refused(lanes: Lanes) -> None:
    first, second = Waiting(lanes[0], 1), Waiting(lanes[0], 1)
    lanes[1].send_message(0, b"for one", SECONDS)
    # Whichever came first has the direction until its message is there.
    assert {type(second.end()), type(first.end())} == {LocalLaneStateError, bytes}
    lanes[1].send_message(0, b"again", SECONDS)
    assert lanes[0].receive_message(1, SECONDS) == b"again"


@pytest.mark.parametrize("provider", ["shm", "tcp"])
def test_a_prefill_chunk_of_12_mib_both_ways_at_once(provider: Literal["shm", "tcp"]) -> None:
    chunk = sample((2048, 3072), mx.bfloat16)
    assert chunk.nbytes == 12 * 1024 * 1024
    with group_lanes(2, provider, LinkOptions()) as (one, other):

        def receive(lane: HostLane, peer: int) -> None:
            into = blanks([chunk])
            lane.receive_into(peer, into, SECONDS)
            assert same(into, [chunk])

        at_once(
            lambda: one.send(1, [chunk], SECONDS),
            lambda: other.send(0, [chunk], SECONDS),
            lambda: receive(one, 1),
            lambda: receive(other, 0),
        )


def test_a_killed_rank_in_memory_is_lost() -> None:
    one, other = memory_host_lanes(2)
    waits = Waiting(one, 1)
    other.kill()
    assert type(waits.end()) is RemotePeerLostError
    assert type(error_of(lambda: one.send_message(1, b"x", SECONDS))) is RemotePeerLostError


def test_host_transfers_and_groups_operations_share_one_order() -> None:
    with group_lanes(2, "shm", LinkOptions()) as (one, other):
        assert isinstance(one, GroupHostLane)
        assert isinstance(other, GroupHostLane)
        one.send_message(1, b"first", SECONDS)
        one.group.native.send_bytes(1, b"second")
        one.send_message(1, b"third", SECONDS)
        assert other.receive_message(0, SECONDS) == b"first"
        into = bytearray(6)
        other.group.native.receive_bytes(0, into)
        assert into == b"second"
        one.group.native.send_bytes(1, b"out of turn")
        assert other.receive_message(0, SECONDS) == b"third"
        assert isinstance(error_of(lambda: other.receive_message(0, SECONDS)), RemoteMismatchError)
