"""A message port over two rings in shared memory, one for each direction, and a Unix socket as doorbell.

A message to a process that is busy is a copy and no system call; one to a process that sleeps is one byte on the
socket beside it. The socket also tells the other side's death, for the system closes it.
"""

import os
import socket

from macmesh_rdma import _ring
from macmesh_rdma.errors import LocalPortError, LocalSharedMemoryError, RemoteMismatchError
from macmesh_rdma.messages.port import MAX_PENDING_BYTES
from macmesh_rdma.messages.waiting_port import WaitingPort
from macmesh_rdma.shared_memory import create_shared_memory

CAPACITY_BYTES = 256 * 1024
"""Of each direction. Some 3,600 tokens; a longer message passes it in pieces."""
_DOORBELL_READ_BYTES = 4096


def create_ring(capacity_bytes: int = CAPACITY_BYTES) -> int:
    """An empty ring for one direction; returns the descriptor of its memory, which the caller closes.

    Raises:
        LocalSharedMemoryError: there is no shared memory to be had.
        ValueError: the capacity is not a power of two.
    """
    memory = create_shared_memory(_ring.memory_bytes(capacity_bytes))
    try:
        _ring.format(memory, capacity_bytes)
    except BaseException:
        os.close(memory)
        raise
    return memory


class RingPort(WaitingPort):
    """See `macmesh_rdma.messages.port.MessagePort`; `send` may be called from any thread.

    Args:
        doorbell: a connected Unix stream socket; the port takes it over.
        outgoing: descriptor of the ring to write to; left open, not needed any more.
        incoming: descriptor of the ring to read from; likewise.
        max_pending_bytes: how much `send` queues.

    Raises:
        LocalSharedMemoryError: the descriptors are no rings of this build, or are in use.
    """

    kind = "ring"

    def __init__(
        self,
        doorbell: socket.socket,
        *,
        outgoing: int,
        incoming: int,
        max_pending_bytes: int = MAX_PENDING_BYTES,
    ) -> None:
        super().__init__()
        try:
            self._writer = _ring.Writer(outgoing, doorbell.fileno(), max_pending_bytes)
            self._reader = _ring.Reader(incoming, doorbell.fileno())
        except RuntimeError as error:
            raise LocalSharedMemoryError(
                f"cannot use the shared memory that was handed over: {error}"
            ) from error
        doorbell.setblocking(False)  # noqa: FBT003  the standard library's signature
        self._doorbell = doorbell
        self._loop.add_reader(doorbell, self._on_doorbell)

    def send(self, message: bytes) -> None:
        """See `MessagePort.send`."""
        if self._unreachable:
            raise self._lost()
        try:
            self._writer.send(message)
        except _ring.RefusedError as error:
            raise LocalPortError(str(error)) from None
        except _ring.CorruptError as error:
            raise _corrupt(error) from None

    @property
    def pending_bytes(self) -> int:
        """See `MessagePort.pending_bytes`."""
        return self._writer.pending_bytes

    @property
    def rung(self) -> int:
        """How often the other side had to be woken; for measurements."""
        return self._writer.rung

    def _take(self) -> bytes | None:
        try:
            return self._reader.read()
        except _ring.CorruptError as error:
            raise _corrupt(error) from None

    def _idle(self) -> bool:
        return self._writer.idle

    def _said_goodbye(self) -> bool:
        return self._reader.ended

    def _release(self) -> None:
        self._writer.end()
        self._loop.remove_reader(self._doorbell)
        self._doorbell.close()

    def _on_doorbell(self) -> None:
        try:
            rung = self._doorbell.recv(_DOORBELL_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            rung = b""
        if not rung:
            self._loop.remove_reader(self._doorbell)
            self._other_side_went()
            return
        if not self._writer.idle:
            try:
                self._writer.push()
            except _ring.CorruptError:
                self._loop.remove_reader(self._doorbell)
                self._other_side_went()
                return
            self._space_came()
        self._something_came()


def _corrupt(error: Exception) -> RemoteMismatchError:
    return RemoteMismatchError(f"the ring port is broken: {error}; one of the two processes has a fault")
