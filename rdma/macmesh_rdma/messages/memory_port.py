"""A pair of message ports in memory, for tests of what talks through one; held to the same contract."""

import collections
import threading

from macmesh_rdma.errors import LocalPortError
from macmesh_rdma.messages.port import MAX_MESSAGE_BYTES, MAX_PENDING_BYTES
from macmesh_rdma.messages.waiting_port import WaitingPort


class MemoryPort(WaitingPort):
    """One end of a pair; made by `memory_ports`. `send` may be called from any thread."""

    kind = "memory"

    def __init__(self, capacity_bytes: int, max_pending_bytes: int) -> None:
        super().__init__()
        self._capacity_bytes = capacity_bytes
        self._max_pending_bytes = max_pending_bytes
        self._lock = threading.Lock()
        self._inbox: collections.deque[bytes] = collections.deque()
        self._inbox_bytes = 0
        self._queue: collections.deque[bytes] = collections.deque()
        self._pending_bytes = 0
        self._goodbye = False
        self._other: MemoryPort

    def send(self, message: bytes) -> None:
        """See `MessagePort.send`."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise LocalPortError(
                f"a message of {len(message)} bytes is over the limit of {MAX_MESSAGE_BYTES}"
            )
        with self._lock:
            self._require_open()
            if self._unreachable:
                raise self._lost()
            if self._queue and self._pending_bytes + len(message) > self._max_pending_bytes:
                raise LocalPortError(f"the other side takes nothing: {self._pending_bytes} bytes wait for it")
            self._queue.append(message)
            self._pending_bytes += len(message)
        self._push()

    @property
    def pending_bytes(self) -> int:
        """See `MessagePort.pending_bytes`."""
        return self._pending_bytes

    def die(self) -> None:
        """Ends as a killed process does: without a goodbye."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._other._other_side_went)  # noqa: SLF001  the other half of the pair
            self._something_came()
            self._space_came()

    def _push(self) -> None:
        """Moves what there is space for to the other side."""
        other, moved = self._other, False
        with self._lock:
            while self._queue and other._inbox_bytes < other._capacity_bytes:  # noqa: SLF001  as above
                message = self._queue.popleft()
                self._pending_bytes -= len(message)
                other._inbox_bytes += len(message) + 1  # noqa: SLF001  an empty one takes space too
                other._inbox.append(message)  # noqa: SLF001
                moved = True
        if moved:
            other._loop.call_soon_threadsafe(other._something_came)  # noqa: SLF001

    def _take(self) -> bytes | None:
        with self._other._lock:  # noqa: SLF001  guards what the other side writes
            if not self._inbox:
                return None
            message = self._inbox.popleft()
            self._inbox_bytes -= len(message) + 1
        self._other._loop.call_soon_threadsafe(self._other._on_space)  # noqa: SLF001
        return message

    def _on_space(self) -> None:
        if not self._closed:
            self._push()
            self._space_came()

    def _idle(self) -> bool:
        return not self._queue

    def _said_goodbye(self) -> bool:
        return self._other._goodbye  # noqa: SLF001

    def _release(self) -> None:
        with self._lock:
            self._goodbye = not self._queue
            self._queue.clear()
            self._pending_bytes = 0
        self._loop.call_soon_threadsafe(self._other._other_side_went)  # noqa: SLF001


def memory_ports(
    capacity_bytes: int = 256 * 1024, max_pending_bytes: int = MAX_PENDING_BYTES
) -> tuple[MemoryPort, MemoryPort]:
    """Two ports that talk to each other.

    Args:
        capacity_bytes: how much may wait to be received before the sender has to queue.
        max_pending_bytes: how much the sender queues.
    """
    first, second = (MemoryPort(capacity_bytes, max_pending_bytes) for _ in range(2))
    first._other, second._other = second, first  # noqa: SLF001  the only place where a pair is made
    return first, second
