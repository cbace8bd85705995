"""Ranks as threads of one process that connect to each other; no MLX."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from macmesh_rdma.joining.bringup import connect_peers
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.joining.peer_links import PeerLinks, ShmLane
from macmesh_rdma.options import LinkOptions

KEY = b"0123456789abcdef" * 2
EPOCH = (1, 4, 2)
SMALL = LinkOptions(num_buffers=2, frame_bytes=1024, buffer_sizes=2, max_outstanding=16)

Outcome = dict[int, PeerLinks] | BaseException


@contextlib.contextmanager
def listeners(count: int, *, host: str = "127.0.0.1", host_id: str = "here") -> Iterator[list[Listener]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Listener(host, host_id=host_id)) for _ in range(count)]


def endpoints_of(made: Sequence[Listener]) -> list[Endpoint]:
    return [listener.endpoint for listener in made]


def in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Runs all at once; what each returned or raised."""
    outcomes: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            outcomes[index] = calls[index]()
        except BaseException as error:  # noqa: BLE001  told to the test
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return outcomes


def connect(
    listener: Listener, rank: int, endpoints: Sequence[Endpoint], **other: Any
) -> dict[int, PeerLinks]:
    settings: dict[str, Any] = {
        "key": KEY,
        "epoch": EPOCH,
        "name": "test",
        "options": SMALL,
        "timeout_seconds": 60,
    }
    return connect_peers(listener, rank, endpoints, **(settings | other))


def connect_all(made: Sequence[Listener], **other: Any) -> list[Outcome]:
    endpoints = endpoints_of(made)
    return in_threads(
        [functools.partial(connect, listener, rank, endpoints, **other) for rank, listener in enumerate(made)]
    )


def close_links(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, dict):
            for links in outcome.values():
                links.close()


def connected(outcome: Outcome) -> dict[int, PeerLinks]:
    assert isinstance(outcome, dict), outcome
    return outcome


def check_pair(one: PeerLinks, other: PeerLinks) -> None:
    """Bytes written on each descriptor of one come out at the other."""
    pairs = [(one.side, other.side)]
    for lane, links in one.lanes.items():
        theirs = other.lanes[lane]
        if isinstance(links, ShmLane):
            assert isinstance(theirs, ShmLane)
            os.pwrite(links.send_memory, b"ping", 100)
            assert os.pread(theirs.receive_memory, 4, 100) == b"ping"
            os.pwrite(theirs.send_memory, b"pong", 100)
            assert os.pread(links.receive_memory, 4, 100) == b"pong"
            pairs.append((links.send_doorbell, theirs.receive_doorbell))
            pairs.append((links.receive_doorbell, theirs.send_doorbell))
        else:
            pairs += zip(links.descriptors(), theirs.descriptors(), strict=True)
    for number, (ours, opposite) in enumerate(pairs):
        text = f"pair {number}".encode()
        os.set_blocking(opposite, True)
        os.write(ours, text)
        assert os.read(opposite, 100) == text


def open_descriptors() -> set[str]:
    """The process's descriptors, by number and what they are."""
    found = set()
    folder = Path("/dev/fd")
    for entry in os.listdir(folder):  # noqa: PTH208  entries vanish while they are listed
        with contextlib.suppress(OSError):
            found.add(f"{entry} {os.readlink(folder / entry)}")  # noqa: PTH115  same
    return found
