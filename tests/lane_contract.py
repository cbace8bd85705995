"""Roles of the tensor-lane contract; each runs in a thread or in a process of its own."""

import mlx.core as mx

from macmesh_rdma.errors import (
    LocalLaneStateError,
    RemotePeerLostError,
    RemoteTransportError,
    TransportError,
)
from macmesh_rdma.lane import TensorLane

TIMEOUT_SECONDS = 120.0
SHAPES: list[tuple[tuple[int, ...], mx.Dtype]] = [
    ((1, 1, 64), mx.bfloat16),
    ((1, 300, 64), mx.float32),
    ((3,), mx.float16),
    ((1, 700, 1024), mx.bfloat16),  # larger than the socket's buffers
    ((1, 1, 64), mx.bfloat16),
]


def sample(index: int) -> mx.array:
    shape, dtype = SHAPES[index]
    return mx.random.normal(shape, key=mx.random.key(index)).astype(dtype)


def send_all(lane: TensorLane) -> list[str]:
    """Sends every sample, in order."""
    for index in range(len(SHAPES)):
        array = sample(index)
        mx.eval(array)
        lane.send(array, TIMEOUT_SECONDS)
    lane.flush(TIMEOUT_SECONDS)
    return ["sent"]


def receive_all(lane: TensorLane) -> list[str]:
    """Receives every sample and compares it to the bit."""
    told = []
    for index, (shape, dtype) in enumerate(SHAPES):
        array = lane.receive(shape, dtype, TIMEOUT_SECONDS)
        same = array.dtype == dtype and mx.array_equal(array, sample(index)).item()
        told.append("same" if same else "different")
    return told


def pass_on(lane: TensorLane) -> list[str]:
    """Receives every sample and sends it on."""
    for shape, dtype in SHAPES:
        lane.send(lane.receive(shape, dtype, TIMEOUT_SECONDS), TIMEOUT_SECONDS)
    lane.flush(TIMEOUT_SECONDS)
    return ["passed"]


def _error(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except TransportError as error:
        return type(error).__name__
    return "no error"


def misuse_head(lane: TensorLane) -> list[str]:
    """What the head must not do, and what a closed lane refuses."""
    told = [_error(lambda: lane.receive((1,), mx.float32, TIMEOUT_SECONDS))]
    lane.close()
    lane.close()
    told.append(_error(lambda: lane.send(mx.ones(1), TIMEOUT_SECONDS)))
    told.append(_error(lambda: lane.flush(TIMEOUT_SECONDS)))
    return told


def misuse_tail(lane: TensorLane) -> list[str]:
    """What the tail must not do."""
    return [_error(lambda: lane.send(mx.ones(1), TIMEOUT_SECONDS))]


def leave(lane: TensorLane) -> list[str]:
    """Sends one array and goes."""
    array = sample(0)
    mx.eval(array)
    lane.send(array, TIMEOUT_SECONDS)
    lane.flush(TIMEOUT_SECONDS)
    lane.close()
    return ["left"]


def be_left(lane: TensorLane) -> list[str]:
    """Receives one array, then finds the neighbour gone, then the lane broken."""
    shape, dtype = SHAPES[0]
    told = ["same" if mx.array_equal(lane.receive(shape, dtype, TIMEOUT_SECONDS), sample(0)).item() else "?"]
    try:
        lane.receive(shape, dtype, TIMEOUT_SECONDS)
    except RemotePeerLostError:
        told.append("lost")
    except RemoteTransportError as error:
        told.append(type(error).__name__)
    try:
        lane.receive(shape, dtype, TIMEOUT_SECONDS)
    except LocalLaneStateError:
        told.append("broken")
    return told


ROLES = {
    role.__name__: role for role in (send_all, receive_all, pass_on, misuse_head, misuse_tail, leave, be_left)
}
