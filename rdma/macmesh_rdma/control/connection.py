"""One connection of a control lane: frames in both directions, a bounded queue, signs of life."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

from macmesh_rdma.control.lane import ControlOptions
from macmesh_rdma.control.state import (
    LENGTH,
    MESSAGE,
    NONCE,
    PING,
    PONG,
    Keepalive,
    Outbox,
    encode_frame,
)
from macmesh_rdma.errors import (
    LocalLaneFullError,
    LocalLaneStateError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    RemoteTransportError,
)

TICKS_PER_INTERVAL = 4


class Connection:
    """A connection after its TLS handshake.

    Args:
        reader: of the connection.
        writer: of the connection.
        options: bounds.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, options: ControlOptions
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(options.max_queue_bytes)
        self._wake = asyncio.Event()
        self._moved = asyncio.Condition()
        self._senders = asyncio.Lock()
        self._draining = False
        self._ended = ""
        # drain() then waits until the system has everything, but for what TLS itself may hold (64 KiB).
        # Not 0: asyncio's TLS pauses at the limit, not above it, and so would begin paused.
        writer.transport.set_write_buffer_limits(high=1, low=0)

    @property
    def certificate(self) -> Mapping[str, Any] | None:
        """The other side's certificate, as `ssl.SSLSocket.getpeercert` gives it."""
        return cast("Mapping[str, Any] | None", self._writer.get_extra_info("peercert"))

    async def say_hello(self, hello: bytes) -> None:
        """Writes our first message.

        Raises:
            RemotePeerLostError: the connection ended.
        """
        try:
            self._writer.write(encode_frame(MESSAGE, hello))
            await self._writer.drain()
        except OSError as error:
            raise RemotePeerLostError(f"the connection broke: {error!r}") from error

    async def read_hello(self) -> bytes:
        """The other side's first message.

        Raises:
            RemotePeerLostError: the connection ended.
            RemoteMismatchError: this is no hello.
        """
        kind, body = await self._read_frame(self._options.max_hello_bytes)
        if kind != MESSAGE:
            raise RemoteMismatchError("the first frame is no hello")
        return body

    async def run(self, on_message: Callable[[bytes], None]) -> NoReturn:
        """Carries messages until the connection ends.

        Raises:
            RemoteTransportError: how it ended.
        """
        options = self._options
        keepalive = Keepalive(
            options.ping_interval_seconds, options.silence_deadline_seconds, self._loop.time()
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(on_message, keepalive), name="control-read")
                group.create_task(self._drain(), name="control-drain")
                group.create_task(self._watch(keepalive), name="control-watch")
        except* RemoteTransportError as errors:
            first = errors.exceptions[0]
            self._ended = str(first)
            raise RemotePeerLostError(self._ended) from first
        finally:
            self._ended = self._ended or "the connection was closed"
            self.abort()
            async with self._moved:
                self._moved.notify_all()
        raise AssertionError("a connection ends by an error only")

    def send_now(self, message: bytes) -> None:
        """See `ControlLane.send_now`."""
        if self._senders.locked():
            raise LocalLaneFullError("others wait for room already")
        self._put(self._frame(message))

    async def send(self, message: bytes) -> None:
        """See `ControlLane.send`."""
        frame = self._frame(message)
        seconds = self._options.delivery_deadline_seconds
        try:
            async with asyncio.timeout(seconds), self._senders, self._moved:
                await self._moved.wait_for(lambda: self._ended or self._outbox.has_room(len(frame)))
                self._put(frame)
        except TimeoutError as error:
            raise LocalLaneFullError(
                f"there was no room for a message of {len(message)} bytes within {seconds:g} s"
            ) from error

    async def flush(self) -> None:
        """See `ControlLane.flush`."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._ended or self._outbox.empty)
        self._require_alive()

    async def say_last(self, message: bytes, timeout_seconds: float) -> None:
        """Writes a message ahead of all that waits; gives up when the time has passed."""
        if not self._ended:
            self._outbox.put_last(encode_frame(MESSAGE, message))
            self._pump()
            with contextlib.suppress(TimeoutError, LocalLaneStateError):
                async with asyncio.timeout(timeout_seconds):
                    await self.flush()

    def abort(self) -> None:
        """Ends the connection at once."""
        # close() of a TLS connection would wait for the other side's farewell; it may be gone.
        self._writer.transport.abort()

    def _frame(self, message: bytes) -> bytes:
        if len(message) >= self._options.max_message_bytes:
            raise LocalLaneFullError(
                f"a message of {len(message)} bytes is over the limit of {self._options.max_message_bytes}"
            )
        return encode_frame(MESSAGE, message)

    def _put(self, frame: bytes) -> None:
        self._require_alive()
        self._outbox.put(frame, self._loop.time() + self._options.delivery_deadline_seconds)
        self._pump()

    def _pump(self) -> None:
        """Writes what waits until the transport holds something back; `_drain` goes on from there."""
        transport = self._writer.transport
        while not self._draining and not transport.is_closing():
            frame = self._outbox.take()
            if frame is None:
                return
            self._writer.write(frame)
            if transport.get_write_buffer_size():
                self._draining = True
                self._wake.set()
            else:
                self._outbox.written()

    def _require_alive(self) -> None:
        if self._ended:
            raise LocalLaneStateError(f"the connection has ended: {self._ended}")

    async def _drain(self) -> NoReturn:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                # Bounded by `_watch`, which ends this task too.
                await self._writer.drain()
            except OSError as error:
                raise RemotePeerLostError(f"the connection broke: {error!r}") from error
            self._outbox.written()
            self._draining = False
            self._pump()
            async with self._moved:
                self._moved.notify_all()

    async def _read(self, on_message: Callable[[bytes], None], keepalive: Keepalive) -> NoReturn:
        while True:
            kind, body = await self._read_frame(self._options.max_message_bytes)
            match kind:
                case b"m":
                    on_message(body)
                case b"p" if len(body) == NONCE.size:
                    self._outbox.put_sign(PONG, NONCE.unpack(body)[0])
                    self._pump()
                case b"q" if len(body) == NONCE.size and keepalive.answered(NONCE.unpack(body)[0]):
                    pass
                case _:
                    raise RemoteMismatchError(f"it sent a frame of kind {kind!r} with {len(body)} bytes")

    async def _read_frame(self, max_bytes: int) -> tuple[bytes, bytes]:
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            if not 1 <= length <= max_bytes:
                raise RemoteMismatchError(f"it sent a frame of {length} bytes; the limit is {max_bytes}")
            frame = await self._reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            inside = " inside a frame" if error.partial or error.expected != LENGTH.size else ""
            raise RemotePeerLostError(f"it closed the connection{inside}") from error
        except OSError as error:
            raise RemotePeerLostError(f"the connection broke: {error!r}") from error
        return frame[:1], frame[1:]

    async def _watch(self, keepalive: Keepalive) -> NoReturn:
        options = self._options
        while True:
            await asyncio.sleep(options.ping_interval_seconds / TICKS_PER_INTERVAL)
            now = self._loop.time()
            if self._outbox.is_overdue(now):
                raise RemoteTimeoutError(
                    f"it has not taken a message for {options.delivery_deadline_seconds:g} s"
                )
            match keepalive.tick(now):
                case "lost":
                    raise RemoteTimeoutError(
                        f"it has answered no ping for {options.silence_deadline_seconds:g} s"
                    )
                case "ping":
                    self._outbox.put_sign(PING, keepalive.nonce)
                    self._pump()
                case "wait":
                    pass
