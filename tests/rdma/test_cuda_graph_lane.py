"""The set-up of memory between two ranks, its bounds, and how waits end; with the kernels compiled for the CPU."""

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import pytest

from bringing_up import in_threads
from macmesh_rdma.cuda_graph_lane import CudaGraphLane
from macmesh_rdma.cuda_set_up import open_cuda_graph_lane
from macmesh_rdma.errors import (
    LocalLaneStateError,
    LocalSharedMemoryError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.named_memory import create_named_memory, open_named_memory, remove_name
from macmesh_rdma.testing.host_kernels import HostKernels
from macmesh_rdma.testing.memory_host_lane import MemoryHostLane, memory_host_lanes

BUFFERS = 3


@pytest.fixture(scope="module")
def kernels() -> Iterator[HostKernels]:
    made = HostKernels()
    yield made
    made.close()


def open_lane(
    host: MemoryHostLane,
    rank: int,
    size: int,
    kernels: HostKernels,
    failure: Callable[[], TransportError | None] = lambda: None,
    seconds: float = 20.0,
) -> CudaGraphLane:
    return open_cuda_graph_lane(
        host,
        rank,
        size,
        payload_bytes=64 + rank,
        buffers=BUFFERS,
        receive_seconds=seconds,
        set_up_seconds=60,
        failure=failure,
        kernels=kernels,
    )


def open_all(size: int, kernels: HostKernels, **more: Any) -> list[CudaGraphLane]:
    hosts = memory_host_lanes(size)
    made = in_threads(
        [functools.partial(open_lane, hosts[rank], rank, size, kernels, **more) for rank in range(size)]
    )
    for lane in made:
        assert isinstance(lane, CudaGraphLane), lane
    return made


@pytest.mark.parametrize("size", [2, 3])
def test_a_payload_goes_round_the_ranks_and_no_name_is_left(
    size: int, kernels: HostKernels, names: Any
) -> None:
    lanes = open_all(size, kernels)
    assert names.made
    assert not names.left()
    value = mx.array([1.5, 2.5], mx.float32)
    for rank, lane in enumerate(lanes):
        following = (rank + 1) % size
        with lane.guarded():
            mx.eval(lane.send(following, [value + rank]))
        with lanes[following].guarded():
            (value,) = lanes[following].receive(rank, [((2,), mx.float32)])
            mx.eval(value)
    assert value.tolist() == [1.5 + sum(range(size)), 2.5 + sum(range(size))]
    with pytest.raises(LocalLaneStateError, match="no way to or from rank 9"):
        lanes[0].send(9, [value])
    with pytest.raises(LocalLaneStateError, match="larger than a buffer"):
        lanes[0].send(1, [mx.zeros((100,), mx.float32)])
    for lane in lanes:
        lane.close()


def test_a_sender_waits_for_a_free_buffer_and_no_longer_than_its_deadline(kernels: HostKernels) -> None:
    sender, receiver = open_all(2, kernels, seconds=0.3)
    for _ in range(BUFFERS):
        with sender.guarded():
            mx.eval(sender.send(1, [mx.ones((2,))]))
    with receiver.guarded():
        mx.eval(receiver.receive(0, [((2,), mx.float32)]))
    with sender.guarded():
        mx.eval(sender.send(1, [mx.ones((2,))]))
    began = time.monotonic()
    with pytest.raises(RemoteTimeoutError, match="it took nothing, for") as raised, sender.guarded():
        mx.eval(sender.send(1, [mx.ones((2,))]))
    assert raised.value.peer == 1
    assert time.monotonic() - began > 0.2
    with pytest.raises(RemoteTimeoutError), sender.guarded():
        mx.eval(sender.send(1, [mx.ones((2,))]))
    for lane in (sender, receiver):
        lane.close()


def test_a_wait_ends_when_the_group_has_failed(kernels: HostKernels) -> None:
    failed: list[TransportError] = []
    lanes = open_all(2, kernels, failure=lambda: failed[0] if failed else None)
    timer = threading.Timer(0.1, failed.append, [RemotePeerLostError("rank 1 has gone", peer=1)])
    timer.start()
    with pytest.raises(RemotePeerLostError, match="rank 1 has gone"), lanes[0].guarded():
        mx.eval(lanes[0].receive(1, [((2,), mx.float32)]))
    for lane in lanes:
        lane.close()


def test_after_one_failure_a_rank_sends_nothing_on(kernels: HostKernels) -> None:
    lanes = open_all(3, kernels, seconds=0.2)
    # What rank 1 would send was made of what did not come.
    (came,) = lanes[1].receive(0, [((2,), mx.float32)])
    mx.eval(lanes[1].send(2, [came]))
    with pytest.raises(RemoteTimeoutError), lanes[1].guarded():
        pass
    with pytest.raises(RemotePeerLostError), lanes[2].guarded():
        mx.eval(lanes[2].receive(1, [((2,), mx.float32)]))
    for lane in lanes:
        lane.close()


@pytest.mark.parametrize(
    "told",
    [
        b"\xff",
        b"[]",
        b"{}",
        json.dumps({"name": "/etc/passwd", "payload_bytes": 64, "buffers": 3}).encode(),
        json.dumps({"name": "/macmesh-0", "payload_bytes": -1, "buffers": 3}).encode(),
        json.dumps({"name": "/macmesh-0", "payload_bytes": 64, "buffers": 10**9}).encode(),
    ],
)
def test_a_neighbour_that_tells_nonsense_of_its_memory_is_refused(
    told: bytes, kernels: HostKernels, names: Any
) -> None:
    hosts = memory_host_lanes(2)
    hosts[1].send_message(0, told, 5)
    with pytest.raises(RemoteMismatchError):
        open_lane(hosts[0], 0, 2, kernels)
    assert names.made
    assert not names.left()


def test_named_memory_is_opened_by_its_name_and_size_alone() -> None:
    name, memory = create_named_memory(5000)
    memory[0:3] = b"abc"
    again = open_named_memory(name, 5000)
    assert again[0:3] == b"abc"
    with pytest.raises(RemoteMismatchError, match="500000 of"):
        open_named_memory(name, 500_000)
    remove_name(name)
    remove_name(name)
    with pytest.raises(LocalSharedMemoryError, match="cannot be opened"):
        open_named_memory(name, 5000)
