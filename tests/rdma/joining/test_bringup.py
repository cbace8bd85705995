import gc
import os
import resource
import select
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringing_up import (
    EPOCH,
    SMALL,
    check_pair,
    close_links,
    connect,
    connect_all,
    connected,
    endpoints_of,
    in_threads,
    listeners,
    open_descriptors,
)
from macmesh_rdma.errors import (
    LocalInterruptedError,
    LocalOptionError,
    LocalProviderError,
    LocalResourceError,
    RemoteAbortedError,
    RemoteAuthenticationError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
)
from macmesh_rdma.joining import accepting, bringup, conversation
from macmesh_rdma.joining import listener as listener_module
from macmesh_rdma.joining.conversation import Talk
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.joining_peer import JoiningPeer
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.joining.plan import neighbours
from macmesh_rdma.shared_memory import check_shared_memory, create_shared_memory

PROVIDERS = ["shm", "tcp", "verbs"]


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    gc.collect()  # what other tests left in cycles would go while this one runs
    threads = threading.active_count()
    before = open_descriptors()
    yield
    assert open_descriptors() == before
    assert threading.active_count() == threads


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_mesh_connects_every_pair_on_every_lane(provider: str, size: int) -> None:
    with listeners(size) as made:
        outcomes = connect_all(made, provider=provider)
        links = [connected(outcome) for outcome in outcomes]
        for rank in range(size):
            assert sorted(links[rank]) == [peer for peer in range(size) if peer != rank]
            for peer, link in links[rank].items():
                assert (link.peer, link.provider, link.reason) == (peer, provider, "asked for")
                assert sorted(link.lanes) == [0, 1]
                if rank < peer:
                    check_pair(link, links[peer][rank])
        close_links(outcomes)


def test_a_pipeline_connects_neighbours_and_tail_to_head() -> None:
    assert [neighbours(rank, 4, "pipeline") for rank in range(4)] == [(1, 3), (0, 2), (1, 3), (0, 2)]
    assert [neighbours(rank, 2, "pipeline") for rank in range(2)] == [(1,), (0,)]
    assert neighbours(0, 1, "pipeline") == ()
    with listeners(4) as made:
        outcomes = connect_all(made, topology="pipeline", lanes=[0])
        assert [sorted(connected(outcome)) for outcome in outcomes] == [[1, 3], [0, 2], [1, 3], [0, 2]]
        check_pair(connected(outcomes[0])[3], connected(outcomes[3])[0])
        close_links(outcomes)


def test_one_machine_shares_memory_and_two_do_not() -> None:
    with listeners(2) as made:
        outcomes = connect_all(made)
        assert {(link.provider, link.reason) for o in outcomes for link in connected(o).values()} == {
            ("shm", "same machine")
        }
        close_links(outcomes)
    with listeners(1, host_id="here") as one, listeners(1, host_id="there") as other:
        outcomes = connect_all([*one, *other])
        assert {(link.provider, link.reason) for o in outcomes for link in connected(o).values()} == {
            ("tcp", "not shm: they are on different machines")
        }
        close_links(outcomes)


def test_ipv6_and_several_sockets_per_link() -> None:
    with listeners(2, host="::1") as made:
        outcomes = connect_all(made, provider="tcp", options=replace(SMALL, sockets_per_link=3), lanes=[0])
        zero, one = (connected(outcome) for outcome in outcomes)
        assert len(zero[1].lanes[0].descriptors()) == 3
        check_pair(zero[1], one[0])
        close_links(outcomes)


def test_a_unix_socket_that_cannot_be_reached_leads_to_tcp_with_the_reason_on_both_sides() -> None:
    with listeners(2) as made:
        endpoints = endpoints_of(made)
        elsewhere = Endpoint("here", "/nowhere/lane", endpoints[0].tcp_address)
        seen = [elsewhere, endpoints[1]]
        outcomes = in_threads([lambda: connect(made[0], 0, seen), lambda: connect(made[1], 1, seen)])
        for outcome in outcomes:
            (link,) = connected(outcome).values()
            assert link.provider == "tcp"
            assert "Unix socket cannot be reached" in link.reason
        close_links(outcomes)
        outcomes = in_threads(
            [
                lambda: connect(made[0], 0, seen, provider="shm", timeout_seconds=0.5),
                lambda: connect(made[1], 1, seen, provider="shm", timeout_seconds=30),
            ]
        )
        assert isinstance(outcomes[1], LocalProviderError)


@pytest.fixture
def full_shared_memory() -> Iterator[None]:
    """No file may grow beyond 1,000 bytes, and shared memory is a file for the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_shared_memory")
def test_without_room_for_shared_memory_links_fall_back_to_tcp_or_fail_when_it_was_asked_for() -> None:
    with listeners(2) as made:
        outcomes = connect_all(made)
        for outcome in outcomes:
            (link,) = connected(outcome).values()
            assert link.provider == "tcp"
            assert f"not shm: cannot get {SMALL.shm_bytes} bytes of shared memory" in link.reason
        check_pair(connected(outcomes[0])[1], connected(outcomes[1])[0])
        close_links(outcomes)
        outcomes = connect_all(made, provider="shm")
        assert isinstance(outcomes[1], LocalProviderError)
        assert isinstance(outcomes[0], RemoteAbortedError)
        assert "rank 1 gave up: shared memory was asked for" in str(outcomes[0])


def test_memory_that_the_receiver_refuses_leads_to_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, size_bytes: int) -> None:
        raise RemoteMismatchError(f"{descriptor and size_bytes} bytes are not fresh")

    monkeypatch.setattr(accepting, "check_shared_memory", refuse)
    with listeners(2) as made:
        outcomes = connect_all(made)
        for outcome in outcomes:
            (link,) = connected(outcome).values()
            assert (link.provider, link.reason) == (
                "tcp",
                f"not shm: rank 0 refused it: {SMALL.shm_bytes} bytes are not fresh",
            )
        close_links(outcomes)


def test_shared_memory_of_a_peer_is_checked(names: Any) -> None:
    memory = create_shared_memory(5000)
    try:
        check_shared_memory(memory, 5000)
        with pytest.raises(RemoteMismatchError, match="has 5000 bytes, 90000"):
            check_shared_memory(memory, 90_000)
        os.pwrite(memory, b"x", 4999)
        with pytest.raises(RemoteMismatchError, match="not all zero"):
            check_shared_memory(memory, 5000)
    finally:
        os.close(memory)
    assert len(names.made) == 1
    assert not names.left()


def strange_connections(listener: Listener) -> list[socket.socket]:
    """One that says nothing, one that talks another protocol, one that breaks off, on both sockets."""
    made = []
    for address, family in (
        (listener.endpoint.host_and_port, socket.AF_INET),
        (listener.endpoint.unix_path, socket.AF_UNIX),
    ):
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"MMHS\x01\x80"):
            stranger = socket.socket(family)
            stranger.connect(address)
            stranger.sendall(words)
            made.append(stranger)
    made[2].close()
    return made


@pytest.mark.parametrize("provider", PROVIDERS)
def test_strangers_do_no_harm_and_are_told_of(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "STRANGER_SECONDS", 0.2)
    told: list[str] = []
    all_told = threading.Event()

    def tell(reason: str) -> None:
        told.append(reason)
        if len(told) == 6:
            all_told.set()

    with listeners(2) as made:
        made[0].on_stranger = tell
        strangers = strange_connections(made[0])
        endpoints = endpoints_of(made)

        def rank_one() -> object:
            assert all_told.wait(50)
            return connect(made[1], 1, endpoints, provider=provider)

        outcomes = in_threads([lambda: connect(made[0], 0, endpoints, provider=provider), rank_one])
        check_pair(connected(outcomes[0])[1], connected(outcomes[1])[0])
        close_links(outcomes)
        for stranger in strangers:
            stranger.close()
    assert len(told) == 6
    assert sum("does not speak" in reason for reason in told) == 2
    assert sum("within 0.2 s" in reason for reason in told) == 3
    assert sum("closed before" in reason for reason in told) == 1


def test_more_strangers_than_are_allowed_turn_the_oldest_away() -> None:
    told: list[str] = []
    with listeners(2) as made:
        made[0].on_stranger = told.append
        crowd = []
        for _ in range(accepting.MOST_STRANGERS + 8):
            crowd.append(socket.socket())
            crowd[-1].connect(made[0].endpoint.host_and_port)
        outcomes = connect_all(made, provider="tcp")
        check_pair(connected(outcomes[0])[1], connected(outcomes[1])[0])
        close_links(outcomes)
        for stranger in crowd:
            stranger.close()
    assert any("unproved connections" in reason for reason in told)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_who_holds_another_key_is_no_member(provider: str) -> None:
    told: list[str] = []
    with listeners(2) as made:
        made[0].on_stranger = told.append
        endpoints = endpoints_of(made)
        outcomes = in_threads(
            [
                lambda: connect(made[0], 0, endpoints, provider=provider, timeout_seconds=1.5),
                lambda: connect(made[1], 1, endpoints, provider=provider, key=b"x" * 32),
            ]
        )
        assert isinstance(outcomes[0], RemoteTimeoutError)
        assert "rank 1 never connected" in str(outcomes[0])
        assert (outcomes[0].peer, outcomes[0].epoch) == (1, "1.4.2")
        error = outcomes[1]
        assert isinstance(error, LocalProviderError if provider == "shm" else RemoteAuthenticationError)
        assert "does not hold the key of epoch 1.4.2" in str(error)
    assert any("closed before it proved itself" in reason for reason in told)


def test_another_epoch_is_told_apart_and_the_older_one_waits_for_nobody() -> None:
    with listeners(2) as made:
        endpoints = endpoints_of(made)
        outcomes = in_threads(
            [
                lambda: connect(made[0], 0, endpoints, timeout_seconds=1.5, epoch=(1, 5, 0)),
                lambda: connect(made[1], 1, endpoints, provider="auto", epoch=EPOCH),
            ]
        )
        assert isinstance(outcomes[0], RemoteTimeoutError)
        assert isinstance(outcomes[1], RemoteMismatchError)
        assert "group 'test' of epoch 1.4.2, we are in 'test' of epoch 1.5.0" in str(outcomes[1])


def test_a_peer_that_is_still_busy_with_an_older_epoch_is_waited_for() -> None:
    with listeners(2) as made:
        endpoints = endpoints_of(made)

        def late() -> object:
            with pytest.raises(RemoteTimeoutError):
                connect(made[0], 0, endpoints, epoch=(1, 4, 1), key=b"old key " * 4, timeout_seconds=0.4)
            return connect(made[0], 0, endpoints)

        outcomes = in_threads([late, lambda: connect(made[1], 1, endpoints)])
        check_pair(connected(outcomes[0])[1], connected(outcomes[1])[0])
        close_links(outcomes)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"options": replace(SMALL, num_buffers=9)}, "other link options"),
        ({"provider": "tcp"}, "another provider"),
    ],
)
def test_ranks_that_disagree_about_their_links_both_learn_it(other: dict[str, object], text: str) -> None:
    with listeners(2) as made:
        endpoints = endpoints_of(made)
        outcomes = in_threads(
            [lambda: connect(made[0], 0, endpoints), lambda: connect(made[1], 1, endpoints, **other)]
        )
        for outcome in outcomes:
            assert isinstance(outcome, RemoteMismatchError)
            assert text in str(outcome)


def test_a_dialler_that_never_had_to_wait_still_says_that_it_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where each answer is there before it is looked for, on a busy processor: all in one go, without a turn."""
    hurried = threading.local()
    receive = conversation.receive_exactly

    def receive_at_once(sock: socket.socket, count: int) -> Talk[bytes]:
        if getattr(hurried, "yes", False):
            select.select([sock], [], [], 10)
        return (yield from receive(sock, count))

    monkeypatch.setattr(conversation, "receive_exactly", receive_at_once)

    def dial() -> object:
        hurried.yes = True
        return connect(made[1], 1, endpoints, provider="shm", timeout_seconds=40)

    with listeners(2) as made:
        endpoints = endpoints_of(made)
        began = time.monotonic()
        outcomes = in_threads(
            [lambda: connect(made[0], 0, endpoints, provider="shm", timeout_seconds=50), dial]
        )
        assert time.monotonic() - began < 30
        check_pair(connected(outcomes[0])[1], connected(outcomes[1])[0])
        close_links(outcomes)


def test_a_second_process_of_a_rank_is_turned_away_and_the_first_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    first_in, turned_away = threading.Event(), threading.Event()

    def tell(reason: str) -> None:
        told.append(reason)
        turned_away.set()

    class SeenPeer(JoiningPeer):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "side" and value is not None and self.number == 1:
                first_in.set()

    monkeypatch.setattr(bringup, "JoiningPeer", SeenPeer)
    with listeners(4) as made:
        made[0].on_stranger = tell
        endpoints = endpoints_of(made[:3])
        twin_endpoints = [endpoints[0], made[3].endpoint, endpoints[2]]

        def twin() -> object:
            assert first_in.wait(60)
            return connect(made[3], 1, twin_endpoints, provider="tcp")

        def late_rank() -> object:
            # The group waits for rank 2, so that the twin finds it still connecting.
            assert turned_away.wait(60)
            return connect(made[2], 2, endpoints, provider="tcp")

        outcomes = in_threads(
            [
                lambda: connect(made[0], 0, endpoints, provider="tcp"),
                lambda: connect(made[1], 1, endpoints, provider="tcp"),
                late_rank,
                twin,
            ]
        )
        assert isinstance(outcomes[3], RemoteMismatchError)
        assert "rank 1 is connected already" in str(outcomes[3])
        check_pair(connected(outcomes[0])[1], connected(outcomes[1])[0])
        close_links(outcomes)
    assert told == ["rank 1 was turned away: rank 1 is connected already"]


def test_a_wrong_rank_is_a_mismatch() -> None:
    with listeners(2) as made:
        endpoints = endpoints_of(made)
        outcomes = in_threads(
            [
                lambda: connect(made[0], 0, endpoints, timeout_seconds=1.5),
                # It takes the other for rank 1 of three.
                lambda: connect(made[1], 2, [endpoints[0], endpoints[0], endpoints[1]], timeout_seconds=30),
            ]
        )
        assert isinstance(outcomes[0], RemoteMismatchError)
        assert isinstance(outcomes[1], RemoteMismatchError)
        assert "3 ranks, ours 2" in str(outcomes[0])


def test_a_peer_that_is_gone_is_an_error_at_once() -> None:
    with listeners(2) as made:
        endpoints = endpoints_of(made)
        made[0].close()
        began = time.monotonic()
        with pytest.raises(RemotePeerLostError, match="rank 0 is gone") as raised:
            connect(made[1], 1, endpoints, provider="tcp")
        assert raised.value.peer == 0
        assert time.monotonic() - began < 30


def test_whoever_gives_up_tells_the_others_why() -> None:
    with listeners(3) as made:
        endpoints = endpoints_of(made)
        made[0].on_stranger = lambda _: None
        stop = threading.Event()
        outcomes = in_threads(
            [
                lambda: connect(made[0], 0, endpoints),
                lambda: connect(made[1], 1, endpoints, timeout_seconds=0.5),
                stop.is_set,
            ]
        )
        assert isinstance(outcomes[1], RemoteTimeoutError)
        assert isinstance(outcomes[0], RemoteAbortedError)
        assert "rank 1 gave up" in str(outcomes[0])
        assert "rank 2 never connected" in str(outcomes[0])


def test_connecting_can_be_stopped_by_an_event_and_by_closing_the_listener() -> None:
    with listeners(2) as made:
        endpoints = endpoints_of(made)
        stop = threading.Event()
        timer = threading.Timer(0.1, stop.set)
        timer.start()
        with pytest.raises(LocalInterruptedError, match="told to stop"):
            connect(made[0], 0, endpoints, stop=stop)
        timer = threading.Timer(0.1, made[0].close)
        timer.start()
        with pytest.raises(LocalInterruptedError, match="listener was closed"):
            connect(made[0], 0, endpoints)
        timer.join()
        with pytest.raises(LocalInterruptedError):
            connect(made[0], 0, endpoints)


def test_a_listener_leaves_nothing_behind_and_its_folder_is_private() -> None:
    listener = Listener("127.0.0.1", host_id="here")
    folder = Path(listener.endpoint.unix_path).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    listener.close()
    listener.close()
    assert not folder.exists()
    with Listener("127.0.0.1", unix=False) as plain:
        assert plain.endpoint.unix_path == ""


def test_the_folder_of_a_killed_process_is_swept_and_that_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "STALE_SECONDS", -1.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "macmesh-lane-left"
    left.mkdir()
    with listeners(1) as living:
        assert not left.exists()
        with listeners(1):
            assert Path(living[0].endpoint.unix_path).exists()


def test_nonsense_is_refused() -> None:
    with listeners(1) as made:
        endpoints = endpoints_of(made)
        with pytest.raises(LocalOptionError, match="rank 1"):
            connect(made[0], 1, endpoints)
        with pytest.raises(LocalOptionError, match="pigeon"):
            connect(made[0], 0, endpoints, provider="pigeon")
        with pytest.raises(LocalOptionError, match="key"):
            connect(made[0], 1, [*endpoints, *endpoints], key=b"short", timeout_seconds=1)


@pytest.mark.parametrize(("provider", "spare"), [("tcp", 1), ("tcp", 4), ("shm", 1), ("shm", 5), ("shm", 9)])
def test_too_few_descriptors_are_a_clear_error_and_the_next_try_works(provider: str, spare: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listeners(2) as made:
        highest = max(int(entry.split()[0]) for entry in open_descriptors())
        held = [os.dup(0) for _ in range(highest - len(open_descriptors()) + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, hard))
        try:
            outcomes = connect_all(made, provider=provider, timeout_seconds=1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in held:
                os.close(descriptor)
        assert any(isinstance(outcome, LocalResourceError | LocalProviderError) for outcome in outcomes), (
            outcomes
        )
        assert "open files" in " ".join(map(str, outcomes))
        assert not any(isinstance(outcome, dict) for outcome in outcomes)
        outcomes = connect_all(made, provider=provider)
        check_pair(connected(outcomes[0])[1], connected(outcomes[1])[0])
        close_links(outcomes)
