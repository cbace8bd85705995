"""A message port over a Unix stream socket: what a ring falls back to.

A message is a 4-byte big-endian length and that many bytes. The length ``0xFFFFFFFF`` says goodbye, so that an end
without it is a death.
"""

import collections
import contextlib
import socket
import struct
import threading

from macmesh_rdma.errors import LocalPortError, RemoteMismatchError
from macmesh_rdma.messages.port import MAX_MESSAGE_BYTES, MAX_PENDING_BYTES
from macmesh_rdma.messages.waiting_port import WaitingPort

LENGTH = struct.Struct(">I")
GOODBYE = LENGTH.pack(0xFFFFFFFF)
READ_BYTES = 256 * 1024
"""At most this much is read at once, and held unless one message is longer."""


class StreamPort(WaitingPort):
    """See `macmesh_rdma.messages.port.MessagePort`; `send` may be called from any thread.

    Args:
        connection: a connected stream socket; the port takes it over.
        max_pending_bytes: how much `send` queues.
    """

    kind = "socket"

    def __init__(self, connection: socket.socket, *, max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        super().__init__()
        connection.setblocking(False)  # noqa: FBT003  the standard library's signature
        self._connection = connection
        self._max_pending_bytes = max_pending_bytes
        # Held for a system call that does not block, never while waiting.
        self._lock = threading.Lock()
        self._queue: collections.deque[memoryview] = collections.deque()
        self._pending_bytes = 0
        self._arrived = bytearray()
        self._goodbye = False
        self._paused = False
        self._loop.add_reader(connection, self._on_readable)

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
            frame = memoryview(LENGTH.pack(len(message)) + message)
            if self._queue:
                if self._pending_bytes + len(frame) > self._max_pending_bytes:
                    raise LocalPortError(
                        f"the other side takes nothing: {self._pending_bytes} bytes wait for it"
                    )
            else:
                frame = frame[self._write(frame) :]
                if self._unreachable:
                    raise self._lost()
                if not frame:
                    return
                self._loop.call_soon_threadsafe(self._watch_space)
            self._queue.append(frame)
            self._pending_bytes += len(frame)

    @property
    def pending_bytes(self) -> int:
        """See `MessagePort.pending_bytes`."""
        return self._pending_bytes

    def _write(self, frame: memoryview) -> int:
        try:
            return self._connection.send(frame)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # What it sent before may still be unread, so its end is told by the reads.
            self._unreachable = True
            return 0

    def _watch_space(self) -> None:
        if not self._closed:
            self._loop.add_writer(self._connection, self._on_writable)

    def _on_writable(self) -> None:
        with self._lock:
            while self._queue and not self._unreachable:
                frame = self._queue[0]
                written = self._write(frame)
                self._pending_bytes -= written
                if written < len(frame):
                    self._queue[0] = frame[written:]
                    break
                self._queue.popleft()
            if not self._queue or self._unreachable:
                self._loop.remove_writer(self._connection)
        self._space_came()

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._other_side_went()
            return
        self._arrived += data
        if len(self._arrived) >= max(READ_BYTES, self._wanted_bytes()):
            # Whoever sends must notice that nobody takes it.
            self._paused = True
            self._loop.remove_reader(self._connection)
        self._something_came()

    def _wanted_bytes(self) -> int:
        if len(self._arrived) < LENGTH.size:
            return LENGTH.size
        (length,) = LENGTH.unpack_from(self._arrived)
        return LENGTH.size + int(length) if length <= MAX_MESSAGE_BYTES else 0

    def _take(self) -> bytes | None:
        message = self._parse()
        if self._paused and len(self._arrived) < max(READ_BYTES, self._wanted_bytes()):
            self._paused = False
            self._loop.add_reader(self._connection, self._on_readable)
        return message

    def _parse(self) -> bytes | None:
        if self._goodbye or len(self._arrived) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._arrived)
        if self._arrived.startswith(GOODBYE):
            self._goodbye = True
            del self._arrived[: LENGTH.size]
            return None
        if length > MAX_MESSAGE_BYTES:
            raise RemoteMismatchError(f"a message of {length} bytes is over the limit of {MAX_MESSAGE_BYTES}")
        end = LENGTH.size + length
        if len(self._arrived) < end:
            return None
        message = bytes(memoryview(self._arrived)[LENGTH.size : end])
        del self._arrived[:end]
        return message

    def _idle(self) -> bool:
        return not self._queue

    def _said_goodbye(self) -> bool:
        return self._goodbye

    def _release(self) -> None:
        with self._lock:
            if not self._queue and not self._unreachable:
                with contextlib.suppress(OSError):
                    self._connection.send(GOODBYE)
            self._queue.clear()
            self._pending_bytes = 0
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._connection.close()
