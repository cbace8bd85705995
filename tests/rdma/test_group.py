"""Groups: opened, measured, capped, split, failed and closed; one rank here, the other a thread or a process."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import mlx.core  # noqa: F401  before the native module
import pytest

from bringing_up import EPOCH, KEY, SMALL, endpoints_of, in_threads, listeners, open_descriptors
from macmesh_rdma.errors import (
    LocalLaneStateError,
    LocalOptionError,
    RemoteAbortedError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.group import Group, open_group
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.measure import pairs_in_order
from macmesh_rdma.options import LinkOptions

PEER_MAIN = Path(__file__).parent / "group_peer_main.py"
Provider = Literal["shm", "tcp"]
PROVIDERS: list[Provider] = ["shm", "tcp"]


@contextlib.contextmanager
def groups(size: int, **other: Any) -> Iterator[list[Group]]:
    """The ranks of a group in one process, for bytes only."""
    settings: dict[str, Any] = {"key": KEY, "epoch": EPOCH, "options": SMALL} | other
    with listeners(size) as made:
        endpoints = endpoints_of(made)

        def join(rank: int) -> Group:
            return open_group(made[rank], rank, endpoints, **settings)

        outcomes = in_threads([lambda rank=rank: join(rank) for rank in range(size)])  # type: ignore[misc]  # bound
        try:
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            yield outcomes
        finally:
            in_threads([o.close for o in outcomes if isinstance(o, Group)])


def failure_of(group: Group, call: Any) -> TransportError:
    try:
        call()
    except RuntimeError as error:
        with pytest.raises(TransportError) as raised:
            group.raise_failure(error)
        return raised.value
    raise AssertionError


@pytest.mark.parametrize("provider", PROVIDERS)
def test_links_are_measured_and_told_and_nothing_is_left_after_the_group(provider: Provider) -> None:
    before = open_descriptors()
    with groups(3, provider=provider) as made:
        assert [(group.rank, group.size) for group in made] == [(0, 3), (1, 3), (2, 3)]
        for group in made:
            assert [link.peer for link in group.links] == [p for p in range(3) if p != group.rank]
            for link in group.links:
                assert (link.provider, link.reason) == (provider, "asked for")
                assert link.pool_bytes == SMALL.pool_bytes(provider, 2)
                assert link.latency_us is not None
                assert 0 < link.latency_us < 1e6
                assert link.gb_per_s is not None
                assert 0 < link.gb_per_s < 1000
        into = bytearray(5)
        in_threads(
            [lambda: made[0].native.send_bytes(2, b"hello"), lambda: made[2].native.receive_bytes(0, into)]
        )
        assert into == b"hello"
        assert made[0].failure is None
    del group, link
    made.clear()  # a closed group keeps a pipe until it is forgotten
    assert open_descriptors() == before


@pytest.mark.parametrize("provider", PROVIDERS)
def test_payloads_with_checksums_arrive(provider: Provider) -> None:
    options = dataclasses.replace(SMALL, checksum_payloads=True)
    with groups(2, provider=provider, options=options) as made:
        sent, into = bytes(range(256)) * 100, bytearray(25_600)
        in_threads(
            [lambda: made[0].native.send_bytes(1, sent), lambda: made[1].native.receive_bytes(0, into)]
        )
        assert into == sent
        assert [group.failure for group in made] == [None, None]


def test_the_order_of_measuring_has_no_circle() -> None:
    assert [pairs_in_order(rank, set(range(4)) - {rank}) for rank in range(4)] == [
        [1, 2, 3],
        [0, 2, 3],
        [0, 1, 3],
        [0, 1, 2],
    ]


def test_a_limit_shrinks_the_pool_of_every_rank_alike_and_is_told() -> None:
    one = LinkOptions(num_buffers=1, frame_bytes=1024, buffer_sizes=2, max_outstanding=16)
    with groups(2, most_pool_bytes=one.pool_bytes("shm", 2), measure=False) as made:
        for group in made:
            (link,) = group.links
            assert link.pool_bytes == one.pool_bytes("shm", 2)
            assert "1 of 2 buffers, to fit" in link.reason
            assert link.latency_us is None
    with pytest.raises(LocalOptionError, match="one of each size"), groups(2, most_pool_bytes=1000):
        pass


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_mismatch_is_known_to_both_sides_with_rank_and_epoch(provider: Provider) -> None:
    with groups(2, provider=provider, measure=False, timeout_seconds=5) as made:

        def send() -> TransportError:
            made[0].native.send_bytes(1, b"four")
            return failure_of(made[0], lambda: made[0].native.receive_bytes(1, bytearray(1)))

        told = in_threads(
            [send, lambda: failure_of(made[1], lambda: made[1].native.receive_bytes(0, bytearray(5)))]
        )
        for error, peer in zip(told, (1, 0), strict=True):
            assert isinstance(error, RemoteMismatchError), error
            assert (error.peer, error.epoch) == (peer, "1.4.2")
        again = failure_of(made[1], lambda: made[1].native.send_bytes(0, b"x"))
        assert isinstance(again, RemoteMismatchError)


def test_a_refused_operation_does_not_end_the_group() -> None:
    with groups(2, topology="pipeline", measure=False) as made:
        error = failure_of(made[0], lambda: made[0].native.send_bytes(0, b"x"))
        assert isinstance(error, LocalLaneStateError)
        assert made[0].failure is None


def test_what_a_group_did_to_itself_is_local() -> None:
    with groups(2, measure=False) as made:
        made[0].abort("enough")
        error = failure_of(made[0], lambda: made[0].native.send_bytes(1, b"x"))
        assert isinstance(error, LocalLaneStateError)
        other = failure_of(made[1], lambda: made[1].native.receive_bytes(0, bytearray(1)))
        assert isinstance(other, RemoteAbortedError)
        assert "enough" in str(other)


class Peer:
    """Rank 1 as a process, and our rank 0 with it."""

    def __init__(self, provider: Provider) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, str(PEER_MAIN), provider],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.listener = Listener("127.0.0.1", host_id="here")
        theirs = Endpoint.decode(self.hear())
        self.tell(self.listener.endpoint.encode())
        self.group = open_group(
            self.listener,
            0,
            [self.listener.endpoint, theirs],
            key=KEY,
            epoch=EPOCH,
            options=SMALL,
            provider=provider,
            timeout_seconds=60,
            connect_seconds=60,
        )
        assert self.hear() == "open"

    def tell(self, words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.group.close()
        self.listener.close()


@pytest.fixture(params=PROVIDERS)
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    made = Peer(request.param)
    yield made
    made.end()


@pytest.mark.process
def test_a_killed_peer_is_an_error_long_before_the_deadline(peer: Peer) -> None:
    killed: list[float] = []
    waits = threading.Event()

    def kill() -> None:
        assert waits.wait(60)
        killed.append(time.monotonic())
        peer.process.send_signal(signal.SIGKILL)

    def wait() -> tuple[TransportError, float]:
        waits.set()
        error = failure_of(peer.group, lambda: peer.group.native.receive_bytes(1, bytearray(10)))
        return error, time.monotonic()

    (error, noticed), _ = in_threads([wait, kill])
    assert isinstance(error, RemotePeerLostError)
    assert (error.peer, error.epoch) == (1, "1.4.2")
    assert noticed - killed[0] < 30, "50 ms on a quiet machine; by its end, not by the deadline"
    again = failure_of(peer.group, lambda: peer.group.native.send_bytes(1, b"x"))
    assert isinstance(again, RemotePeerLostError)


@pytest.mark.process
def test_a_stopped_peer_is_an_error_at_the_deadline_both_ways_and_learns_it_when_it_goes_on(
    peer: Peer,
) -> None:
    peer.process.send_signal(signal.SIGSTOP)
    peer.group.timeout_seconds = 0.3
    began = time.monotonic()
    # More than the buffers hold.
    error = failure_of(peer.group, lambda: peer.group.native.send_bytes(1, bytes(50_000_000)))
    assert isinstance(error, RemoteTimeoutError)
    assert error.peer == 1
    assert time.monotonic() - began > 0.25
    peer.process.send_signal(signal.SIGCONT)
    peer.tell("receive")
    assert "rank 0 gave up" in peer.hear()


@pytest.mark.process
def test_a_silent_peer_is_an_error_at_the_deadline(peer: Peer) -> None:
    peer.group.timeout_seconds = 0.2
    error = failure_of(peer.group, lambda: peer.group.native.receive_bytes(1, bytearray(10)))
    assert isinstance(error, RemoteTimeoutError)
    assert "0.2 s" in str(error)


@pytest.mark.process
def test_a_peer_that_aborts_says_why_and_one_that_closes_is_lost_after_its_last_bytes(peer: Peer) -> None:
    peer.tell("send")
    into = bytearray(100_000)
    peer.group.native.receive_bytes(1, into)
    assert into == b"x" * 100_000
    peer.tell("abort")
    error = failure_of(peer.group, lambda: peer.group.native.receive_bytes(1, into))
    assert isinstance(error, RemoteAbortedError)
    assert "the operator said so" in str(error)
