import mlx.core as mx
import pytest

from macmesh_rdma.errors import RemoteMismatchError, RemoteTimeoutError
from macmesh_rdma.testing.memory_lane import MemoryLane, memory_lanes


def test_memory_lane_detects_mismatch_and_silence() -> None:
    head, tail = memory_lanes(2)
    head.send(mx.ones((2, 3)), 1)
    with pytest.raises(RemoteMismatchError, match=r"\(3, 2\)"):
        tail.receive((3, 2), mx.float32, 1)
    assert head.sent_bytes == 24
    silent: MemoryLane
    _, silent = memory_lanes(2)
    with pytest.raises(RemoteTimeoutError):
        silent.receive((1,), mx.float32, 0.01)
