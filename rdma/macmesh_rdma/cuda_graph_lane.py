"""Transfers inside MLX's graphs between CUDA GPUs of one machine: kernels wait on pinned shared memory. Imports mlx.

MLX's CUDA build waits on the host for another stream, so a graph that begins with a receive of `mx.distributed` could
not be encoded ahead. Here the wait is a kernel like any other.
"""

import contextlib
import ctypes
import mmap
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx

from macmesh_rdma.errors import (
    LocalLaneStateError,
    RemoteAbortedError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.graph_kernels import CONTROL_INPUTS, kernel_name, numbers_of, receive_source, send_source
from macmesh_rdma.graph_lane import Facts, GraphLane
from macmesh_rdma.graph_memory import (
    RECEIVER_END,
    SENDER_END,
    SENT,
    End,
    GraphMemory,
    layout_of,
    signature_of,
)

WATCH_SECONDS = 0.1
"""A peer that is lost ends the waits of kernels about so soon."""
POLL_SECONDS = 0.00002
"""Between two looks of the host at memory that another GPU writes: nothing tells the host of it."""
REASON_SECONDS = 0.5
"""How long it is waited for the reason of a peer that ended."""
_Given = tuple[tuple[int, ...], mx.Dtype]


class Kernels(Protocol):
    """What runs the kernels of `graph_kernels`."""

    def pin(self, address: int, size_bytes: int) -> int:
        """Lets kernels reach memory of the host.

        Returns:
            Its address for kernels.

        Raises:
            LocalResourceError: it cannot be.
        """

    def unpin(self, address: int) -> None:
        """Takes it back; no kernel uses it any more."""

    def run(
        self,
        name: str,
        source: str,
        inputs: Sequence[tuple[str, mx.array]],
        outputs: Sequence[tuple[str, tuple[int, ...], mx.Dtype]],
    ) -> list[mx.array]:
        """Describes one run, of one block; or runs it at once."""


class Segment:
    """One direction of payloads, as one of its two sides has it.

    Args:
        peer: the other side.
        memory: mapped; kept by this object.
        layout: of the memory.
        sends: whether this is the sender's side.
        kernels: pins it.
    """

    def __init__(
        self, peer: int, memory: mmap.mmap, layout: GraphMemory, *, sends: bool, kernels: Kernels
    ) -> None:
        self.peer = peer
        """The other side."""
        self.layout = layout
        """Of the memory."""
        self._memory = memory
        self._end = SENDER_END if sends else RECEIVER_END
        self._peer_end = RECEIVER_END if sends else SENDER_END
        self._host = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._kernels = kernels
        self.address = kernels.pin(self._host, layout.size_bytes)
        """For kernels."""
        self.count = 0
        """Payloads described so far."""
        self.last: mx.array | None = None
        """What has to be evaluated so that all of them are done."""
        self._places: dict[int, mx.array] = {}

    @property
    def end_address(self) -> int:
        """Of this side's end word, for kernels."""
        return self.address + self._end

    def place(self, number: int) -> mx.array:
        """What a kernel has to know of a payload's place."""
        buffer = self.layout.buffer(number)
        if buffer not in self._places:
            offsets = (0, buffer, self.layout.signature(number), self._end)
            self._places[buffer] = mx.array([self.address + offset for offset in offsets], mx.uint64)
        return self._places[buffer]

    @property
    def sent(self) -> int:
        """Payloads that the sender has written."""
        (count,) = struct.unpack_from("=q", self._memory, SENT)
        return int(count)

    def content(self, number: int, size_bytes: int) -> bytes:
        """What lies first in the buffer of a payload."""
        start = self.layout.buffer(number)
        return self._memory[start : start + size_bytes]

    def own_end(self) -> End:
        """Why this side ended."""
        return _end_at(self._memory, self._end)

    def peer_end(self) -> End:
        """Why the other side did."""
        return _end_at(self._memory, self._peer_end)

    def end(self, why: End) -> None:
        """Ends all waits of both sides; the first reason stays."""
        if self.own_end() is End.NONE:
            struct.pack_into("=q", self._memory, self._end, int(why))

    def close(self) -> None:
        """Takes the memory back from kernels."""
        self._kernels.unpin(self._host)


def _end_at(memory: mmap.mmap, offset: int) -> End:
    (value,) = struct.unpack_from("=q", memory, offset)
    return End(value) if value in End._value2member_map_ else End.ABORTED


class CudaGraphLane(GraphLane):
    """Payloads through memory that both GPUs reach; made by `open_cuda_graph_lane`.

    Args:
        incoming: from each peer that sends to this rank.
        outgoing: to each peer.
        kernels: what runs them.
        receive_seconds: longest wait of a kernel.
        failure: what ended the group that the ranks are joined by; None while nothing has.
        give_up: tells the others why, and ends that group.
    """

    name = "cuda"
    reads_apart = True

    def __init__(
        self,
        incoming: Sequence[Segment],
        outgoing: Sequence[Segment],
        *,
        kernels: Kernels,
        receive_seconds: float,
        failure: Callable[[], TransportError | None],
        give_up: Callable[[str], None],
    ) -> None:
        self._incoming = {segment.peer: segment for segment in incoming}
        self._outgoing = {segment.peer: segment for segment in outgoing}
        self._segments = [*incoming, *outgoing]
        self._kernels = kernels
        self._receive_ns = int(receive_seconds * 1e9)
        self._group_failure = failure
        self._give_up = give_up
        self._ends = mx.array([segment.end_address for segment in self._segments], mx.uint64)
        self._nothing = mx.zeros((1,), mx.int64)
        mx.eval(self._ends, self._nothing)
        self._failure: TransportError | None = None
        self._aborted = ""
        self._closed = False
        self._over = threading.Event()
        # A daemon thread: it must not keep the process.
        threading.Thread(target=self._watch, name="graph lane", daemon=True).start()

    def receive(self, peer: int, facts: Sequence[Facts]) -> list[mx.array]:
        """See `GraphLane.receive`."""
        segment = self._segment(self._incoming, peer, len(facts))
        wanted = [(tuple(shape), dtype) for shape, dtype in facts]
        filled = [fact for fact in wanted if _nbytes(fact)]
        sizes = [_nbytes(fact) for fact in filled]
        segment.layout.require(layout_of(sizes))
        source = receive_source(len(sizes), len(self._segments))
        outputs = [(f"out{i}", shape, dtype) for i, (shape, dtype) in enumerate(filled)]
        *came, segment.last = self._kernels.run(
            kernel_name("receive", source, tuple(str(dtype) for _, dtype in filled)),
            source,
            self._control(segment, wanted, sizes),
            [*outputs, ("done", (1,), mx.int64)],
        )
        arrays = iter(came)
        return [next(arrays) if _nbytes(fact) else mx.zeros(*fact) for fact in wanted]

    def send(self, peer: int, arrays: Sequence[mx.array]) -> mx.array:
        """See `GraphLane.send`."""
        segment = self._segment(self._outgoing, peer, len(arrays))
        given = [(tuple(array.shape), array.dtype) for array in arrays]
        filled = [array for array in arrays if array.nbytes]
        sizes = [array.nbytes for array in filled]
        segment.layout.require(layout_of(sizes))
        source = send_source(len(sizes), len(self._segments), segment.layout.buffers)
        inputs = [(f"in{i}", array.reshape(-1)) for i, array in enumerate(filled)]
        (segment.last,) = self._kernels.run(
            kernel_name("send", source, tuple(str(array.dtype) for array in filled)),
            source,
            [*inputs, *self._control(segment, given, sizes)],
            [("done", (1,), mx.int64)],
        )
        return segment.last

    def read(self, peer: int, number: int, size_bytes: int) -> bytes:
        """See `GraphLane.read`. MLX's own way to the host waits for all that the device has to do."""
        segment = self._segment(self._incoming, peer, 1)
        deadline = time.monotonic() + self._receive_ns / 1e9
        while segment.sent < number:
            self._check(None)
            if segment.peer_end() is not End.NONE:
                segment.end(End.PEER_ENDED)
            elif time.monotonic() > deadline:
                segment.end(End.TIMED_OUT)
            else:
                time.sleep(POLL_SECONDS)
        content = segment.content(number, size_bytes)
        if segment.sent >= number + segment.layout.buffers:
            raise LocalLaneStateError(
                f"payload {number} of rank {peer} is read too late: another lies in its place"
            )
        return content

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """See `GraphLane.guarded`."""
        try:
            yield
        except RuntimeError as error:
            self._check(error)
            raise
        self._check(None)

    def flush(self, peer: int) -> None:
        """See `GraphLane.flush`."""
        self._finish(self._outgoing.get(peer))

    def drain(self, peer: int) -> None:
        """See `GraphLane.drain`."""
        self._finish(self._incoming.get(peer))

    def abort(self, reason: str) -> None:
        """See `GraphLane.abort`."""
        self._aborted = self._aborted or reason
        self._give_up(reason)
        self._end_all(End.ABORTED)

    def close(self) -> None:
        """See `GraphLane.close`."""
        if self._closed:
            return
        self._closed = True
        self._over.set()
        self._end_all(End.CLOSED)
        with contextlib.suppress(RuntimeError):
            mx.synchronize()
        for segment in self._segments:
            segment.close()

    def _control(
        self, segment: Segment, facts: Sequence[_Given], sizes: Sequence[int]
    ) -> list[tuple[str, mx.array]]:
        """The inputs that say which payload it is."""
        segment.count += 1
        number = segment.count
        signature = signature_of(tuple((shape, str(dtype)) for shape, dtype in facts))
        values = (
            segment.place(number),
            mx.array(numbers_of(number, self._receive_ns, signature, sizes), mx.int64),
            self._ends,
            segment.last if segment.last is not None else self._nothing,
        )
        return list(zip(CONTROL_INPUTS, values, strict=True))

    def _segment(self, segments: dict[int, Segment], peer: int, arrays: int) -> Segment:
        if self._closed:
            raise LocalLaneStateError("the lane is closed")
        if peer not in segments:
            raise LocalLaneStateError(f"there is no way to or from rank {peer}")
        if not arrays:
            raise LocalLaneStateError("a payload has one array or more")
        return segments[peer]

    def _finish(self, segment: Segment | None) -> None:
        if segment is not None and segment.last is not None:
            with self.guarded():
                mx.eval(segment.last)

    def _end_all(self, why: End) -> None:
        for segment in self._segments:
            segment.end(why)

    def _watch(self) -> None:
        """Ends the kernels' waits once the group has failed."""
        while not self._over.wait(WATCH_SECONDS):
            if self._group_failure() is not None:
                self._end_all(End.ELSEWHERE)
                return

    def _check(self, cause: BaseException | None) -> None:
        if self._failure is None:
            if self._closed:
                raise LocalLaneStateError("the lane is closed") from cause
            ended = [segment for segment in self._segments if segment.own_end() is not End.NONE]
            if not ended:
                return
            self._failure = self._found(ended)
            self._over.set()
            self._end_all(End.ELSEWHERE)
            self._give_up(str(self._failure))
        # A new one each time: an exception collects a traceback wherever it is raised.
        known = self._failure
        raise type(known)(*known.args, peer=known.peer, epoch=known.epoch) from cause

    def _found(self, ended: Sequence[Segment]) -> TransportError:
        """What ended this side."""
        if self._aborted:
            return LocalLaneStateError(self._aborted)
        first = min(ended, key=lambda segment: _WEIGHT.get(segment.own_end(), len(_WEIGHT)))
        peer = first.peer
        match first.own_end():
            case End.TIMED_OUT:
                text = f"nothing came from rank {peer}, or it took nothing, for {self._receive_ns / 1e9:g} s"
                return RemoteTimeoutError(text, peer=peer)
            case End.MISMATCH:
                return RemoteMismatchError(f"rank {peer} sent other arrays than were expected", peer=peer)
        # The other side's reason comes over the group, a moment later than its end word.
        deadline = time.monotonic() + REASON_SECONDS
        failure = self._group_failure()
        while failure is None and time.monotonic() < deadline:
            self._over.wait(REASON_SECONDS / 20)
            failure = self._group_failure()
        if failure is not None:
            return failure
        if first.peer_end() is End.CLOSED:
            return RemotePeerLostError(f"rank {peer} has closed its lane", peer=peer)
        return RemoteAbortedError(f"rank {peer} gave up: {first.peer_end().name.lower()}", peer=peer)


_WEIGHT = {End.TIMED_OUT: 0, End.MISMATCH: 1, End.PEER_ENDED: 2}


def _nbytes(fact: Facts) -> int:
    shape, dtype = fact
    size: int = dtype.size
    for dimension in shape:
        size *= dimension
    return size


class CudaKernels:
    """Kernels of MLX's CUDA backend, on the device that MLX computes on."""

    def __init__(self, threads: int) -> None:
        self._made: dict[str, Any] = {}
        self._block = {"grid": (threads, 1, 1), "threadgroup": (threads, 1, 1)}

    def pin(self, address: int, size_bytes: int) -> int:
        """See `Kernels.pin`."""
        from macmesh_rdma.cuda_runtime import pinned_address  # noqa: PLC0415  looks for a library

        return pinned_address(address, size_bytes)

    def unpin(self, address: int) -> None:
        """See `Kernels.unpin`."""
        from macmesh_rdma.cuda_runtime import unpin  # noqa: PLC0415  same

        unpin(address)

    def run(
        self,
        name: str,
        source: str,
        inputs: Sequence[tuple[str, mx.array]],
        outputs: Sequence[tuple[str, tuple[int, ...], mx.Dtype]],
    ) -> list[mx.array]:
        """See `Kernels.run`."""
        kernel = self._made.get(name)
        if kernel is None:
            made: Any = mx.fast.cuda_kernel
            kernel = self._made[name] = made(
                name, [name for name, _ in inputs], [name for name, *_ in outputs], source
            )
        described: list[mx.array] = kernel(
            inputs=[array for _, array in inputs],
            output_shapes=[shape for _, shape, _ in outputs],
            output_dtypes=[dtype for *_, dtype in outputs],
            **self._block,
        )
        return described
