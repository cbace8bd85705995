"""Makes the memory of `CudaGraphLane` between the stages of a pipeline on one machine. Imports mlx."""

import contextlib
import json
import mmap
from collections.abc import Callable

from macmesh_rdma.cuda_graph_lane import CudaGraphLane, CudaKernels, Kernels, Segment
from macmesh_rdma.errors import RemoteMismatchError, TransportError
from macmesh_rdma.graph_kernels import THREADS
from macmesh_rdma.graph_memory import MOST_BUFFERS, GraphMemory
from macmesh_rdma.host_lane import HostLane
from macmesh_rdma.named_memory import create_named_memory, open_named_memory, remove_name

_MOST_PAYLOAD_BYTES = 1 << 30


def open_cuda_graph_lane(
    host: HostLane,
    rank: int,
    size: int,
    *,
    payload_bytes: int,
    buffers: int,
    receive_seconds: float,
    set_up_seconds: float,
    failure: Callable[[], TransportError | None],
    kernels: Kernels | None = None,
) -> CudaGraphLane:
    """Each rank receives from the one before and sends to the next, the last to the first; all call it at once.

    Args:
        host: to the neighbours; nothing else may be under way on it.
        rank: ours.
        size: ranks, two or more.
        payload_bytes: of the largest payload that comes in; arrays are rounded up to 16 bytes.
        buffers: payloads that may be on their way; at least the steps that may be queued, or a sender may have to wait
            for a receiver that waits for it.
        receive_seconds: longest wait of a kernel.
        set_up_seconds: for each message of the set-up.
        failure: what ended the group behind ``host``.
        kernels: by default MLX's.

    Raises:
        LocalSharedMemoryError: there is none.
        LocalResourceError: it cannot be pinned.
        RemoteMismatchError: a neighbour said nothing sensible.
        TransportError: one is lost or silent.
    """
    kernels = kernels or CudaKernels(THREADS)
    before, following = (rank - 1) % size, (rank + 1) % size
    own = GraphMemory(payload_bytes, buffers)
    name, memory = create_named_memory(own.size_bytes)
    try:
        told = json.dumps({"name": name, "payload_bytes": payload_bytes, "buffers": buffers})
        host.send_message(before, told.encode(), set_up_seconds)
        theirs, layout = _opened(host.receive_message(following, set_up_seconds), following)
        host.send_message(following, b"mapped", set_up_seconds)
        if host.receive_message(before, set_up_seconds) != b"mapped":
            raise RemoteMismatchError(f"rank {before} did not take the shared memory", peer=before)
    finally:
        remove_name(name)
    with contextlib.ExitStack() as stack:
        incoming = Segment(before, memory, own, sends=False, kernels=kernels)
        stack.callback(incoming.close)
        outgoing = Segment(following, theirs, layout, sends=True, kernels=kernels)
        stack.pop_all()
    return CudaGraphLane(
        [incoming],
        [outgoing],
        kernels=kernels,
        receive_seconds=receive_seconds,
        failure=failure,
        give_up=host.abort,
    )


def _opened(message: bytes, peer: int) -> tuple[mmap.mmap, GraphMemory]:
    try:
        told = json.loads(message)
        name, payload_bytes, buffers = told["name"], told["payload_bytes"], told["buffers"]
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteMismatchError(
            f"rank {peer} told nothing sensible of its memory: {error}", peer=peer
        ) from error
    if (
        not isinstance(name, str)
        or type(payload_bytes) is not int
        or type(buffers) is not int
        or not 0 < payload_bytes <= _MOST_PAYLOAD_BYTES
        or not 0 < buffers <= MOST_BUFFERS
    ):
        raise RemoteMismatchError(f"rank {peer} told of memory that cannot be", peer=peer)
    layout = GraphMemory(payload_bytes, buffers)
    return open_named_memory(name, layout.size_bytes), layout
