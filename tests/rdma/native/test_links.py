"""The links' bindings: bytes arrive, wrong arguments are refused, nothing leaks."""

import mmap
import os
import secrets
import socket
import threading
import time
from _posixshmem import shm_open, shm_unlink  # type: ignore[import-not-found]
from collections.abc import Callable

import mlx.core as mx  # noqa: F401  the native module needs it loaded first
import psutil
import pytest

from macmesh_rdma import _group

Pair = tuple[_group.Link, _group.Link]


def link_options(*, num_buffers: int = 8, buffer_sizes: int = 6, spin_us: float = 20.0) -> _group.LinkOptions:
    return _group.LinkOptions(
        num_buffers=num_buffers,
        frame_bytes=65536,
        buffer_sizes=buffer_sizes,
        max_outstanding=256,
        spin_us=spin_us,
    )


def shared_memory(size_bytes: int) -> int:
    name = f"/macmesh-test-{secrets.token_hex(6)}"
    descriptor: int = shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)
    shm_unlink(name)
    os.ftruncate(descriptor, size_bytes)
    return descriptor


def tcp_pair(options: _group.LinkOptions) -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    return _group.tcp_link(here.detach(), options), _group.tcp_link(there.detach(), options)


def shm_pair(options: _group.LinkOptions) -> Pair:
    forth, back = (shared_memory(_group.shm_bytes(options)) for _ in range(2))
    forth_bells = [end.detach() for end in socket.socketpair()]
    back_bells = [end.detach() for end in socket.socketpair()]
    here = _group.shm_link(os.dup(forth), os.dup(back), forth_bells[0], back_bells[1], options)
    there = _group.shm_link(back, forth, back_bells[0], forth_bells[1], options)
    return here, there


PAIRS = [pytest.param(tcp_pair, id="tcp"), pytest.param(shm_pair, id="shm")]


def run_beside(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, name="other-side")
    thread.start()
    return thread


@pytest.mark.parametrize("make_pair", PAIRS)
@pytest.mark.parametrize("size_bytes", [0, 1, 6144, (1 << 20) + 3])
def test_messages_go_both_ways(make_pair: Callable[[_group.LinkOptions], Pair], size_bytes: int) -> None:
    here, there = make_pair(link_options())
    other = run_beside(lambda: _group.link_echo(there, size_bytes, 20, 20.0))
    seconds = _group.link_ping(here, size_bytes, 20, 20.0)
    other.join()
    assert len(seconds) == 20
    assert all(0 < round_trip < 20 for round_trip in seconds)

    other = run_beside(lambda: _group.link_drain(there, size_bytes, 20, 20.0))
    assert _group.link_flood(here, size_bytes, 20, 20.0) > 0
    other.join()


def test_link_says_what_it_holds() -> None:
    options = link_options()
    tcp, _ = tcp_pair(options)
    shm, _ = shm_pair(options)
    assert (tcp.provider, tcp.pool_bytes) == ("tcp", 16 * 1024)
    buffers_bytes = 8 * 65536 * (2**6 - 1)
    assert _group.shm_bytes(options) == 16384 + 256 * 128 + buffers_bytes
    assert (shm.provider, shm.pool_bytes) == ("shm", 2 * _group.shm_bytes(options))


@pytest.mark.parametrize("make_pair", PAIRS)
def test_silent_peer_is_a_timeout(make_pair: Callable[[_group.LinkOptions], Pair]) -> None:
    here, _there = make_pair(link_options())
    cpu_before_seconds = time.thread_time()
    with pytest.raises(TimeoutError, match="deadline"):
        _group.link_echo(here, 8, 1, 0.1)
    assert time.thread_time() - cpu_before_seconds < 0.05


@pytest.mark.parametrize("make_pair", PAIRS)
def test_closed_peer_is_a_connection_error(make_pair: Callable[[_group.LinkOptions], Pair]) -> None:
    here, there = make_pair(link_options())
    del there
    with pytest.raises(ConnectionError, match="closed"):
        _group.link_echo(here, 8, 1, 20.0)


@pytest.mark.parametrize("make_pair", PAIRS)
def test_abort_ends_both_sides_waits(make_pair: Callable[[_group.LinkOptions], Pair]) -> None:
    here, there = make_pair(link_options())
    ends: list[str] = []

    def wait(link: _group.Link) -> None:
        try:
            _group.link_echo(link, 8, 1, 20.0)
        except ConnectionError as error:
            ends.append(str(error))

    waits = [run_beside(lambda: wait(here)), run_beside(lambda: wait(there))]
    here.abort()
    for thread in waits:
        thread.join()
    assert len(ends) == 2
    assert any("aborted" in end for end in ends)
    assert any("closed" in end or "gone" in end for end in ends)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_buffers", 0, "num_buffers = 0"),
        ("frame_bytes", 100, "multiple of 64"),
        ("buffer_sizes", 17, "buffer_sizes = 17"),
        ("max_outstanding", 0, "max_outstanding = 0"),
        ("spin_us", -1.0, "spin_us"),
        ("spin_us", float("nan"), "spin_us"),
    ],
)
def test_wrong_options_are_named(name: str, value: float, message: str) -> None:
    right: dict[str, float] = {
        "num_buffers": 8,
        "frame_bytes": 65536,
        "buffer_sizes": 6,
        "max_outstanding": 256,
        "spin_us": 20.0,
    }
    with pytest.raises(ValueError, match=message):
        _group.LinkOptions(**(right | {name: value}))  # type: ignore[arg-type]


def test_wrong_descriptors_are_os_errors() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        _group.tcp_link(-1, link_options())
    listener = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(OSError, match="not connected"):
        _group.tcp_link(listener.detach(), link_options())
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(OSError, match="no stream socket"):
        _group.tcp_link(datagram.detach(), link_options())


def test_memory_of_another_layout_is_refused() -> None:
    options = link_options(buffer_sizes=1)

    def make(memory: int, wanted: _group.LinkOptions) -> _group.Link:
        bells = [end.detach() for pair in (socket.socketpair(), socket.socketpair()) for end in pair]
        try:
            return _group.shm_link(
                memory, shared_memory(_group.shm_bytes(wanted)), bells[0], bells[2], wanted
            )
        finally:
            os.close(bells[1])
            os.close(bells[3])

    with pytest.raises(ValueError, match="these options need"):
        make(shared_memory(4096), options)
    memory = shared_memory(_group.shm_bytes(options))
    make(os.dup(memory), options)
    with pytest.raises(ValueError, match="other link options"):
        make(os.dup(memory), link_options(buffer_sizes=1, num_buffers=7))
    with mmap.mmap(memory, mmap.PAGESIZE) as page:
        page[:8] = b"nonsense"
    with pytest.raises(ValueError, match="something else"):
        make(memory, options)


@pytest.mark.parametrize("make_pair", PAIRS)
def test_200_links_leak_no_descriptor(make_pair: Callable[[_group.LinkOptions], Pair]) -> None:
    process = psutil.Process()
    options = link_options()
    before = process.num_fds()
    for number in range(100):
        here, there = make_pair(options)
        if number % 10 == 0:
            here.abort()
        del here, there
    assert process.num_fds() == before
