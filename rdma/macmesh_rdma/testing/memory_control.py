"""A control lane in memory, for ranks of one process; held to the same contract as the one over sockets."""

import asyncio
import itertools
from collections.abc import Mapping

from macmesh_rdma.control.lane import ControlEvents, ControlLane, ControlOptions, Handshake
from macmesh_rdma.control.state import Outbox, encode_frame
from macmesh_rdma.errors import (
    LocalAddressError,
    LocalLaneFullError,
    LocalLaneStateError,
    RemoteAuthenticationError,
    RemotePeerLostError,
    RemoteTimeoutError,
)

LOOPBACK = "127.0.0.1"


class MemoryNetwork:
    """Joins memory lanes by address."""

    def __init__(self) -> None:
        self._ports = itertools.count(1)
        self.lanes: dict[str, MemoryControlLane] = {}

    def new_address(self) -> str:
        """An address that no lane has."""
        return f"memory:{next(self._ports)}"


class MemoryControlLane(ControlLane):
    """See `ControlLane`. A lane whose `frozen` is set takes nothing, as a stopped process would.

    Args:
        network: where the other lanes are.
        certificate: shown to whoever is at the other end.
        handshake: who we are, and who may be at the other end.
        events: what is told.
        options: bounds.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        *,
        certificate: Mapping[str, object] | None = None,
        handshake: Handshake,
        events: ControlEvents,
        options: ControlOptions | None = None,
    ) -> None:
        self._network = network
        self._certificate = certificate
        self._handshake = handshake
        self._events = events
        self._options = options or ControlOptions()
        self._address = ""
        self._group: asyncio.TaskGroup | None = None
        self._outgoing: dict[int, _Wire] = {}
        self._incoming: dict[int, _Wire] = {}
        self._change = asyncio.Event()
        self._ended = ""
        self._closed = False
        self.frozen = asyncio.Event()
        """Set it to stop reading and answering."""

    async def bind(self, host: str, group: asyncio.TaskGroup) -> str:
        """See `ControlLane.bind`; every host but 127.0.0.1 is refused."""
        if host != LOOPBACK:
            raise LocalAddressError(f"the control lane cannot listen on {host!r}: it is in memory")
        self._group = group
        self._address = self._network.new_address()
        self._network.lanes[self._address] = self
        return self._address

    async def connect(self, rank: int, address: str) -> None:
        """See `ControlLane.connect`."""
        self._require_open()
        if rank in self._outgoing:
            raise LocalLaneStateError(f"rank {rank} is connected already")
        while (other := self._network.lanes.get(address)) is None:  # noqa: ASYNC110  as the real one does
            await asyncio.sleep(self._options.connect_retry_seconds)
        self._handshake.check_certificate(rank, other._certificate)  # noqa: SLF001  the other end is of this class
        try:
            async with asyncio.timeout(self._options.hello_deadline_seconds):
                hello, ours = await other._welcome(self, await self._handshake.hello())  # noqa: SLF001  same
                await self._handshake.check_hello(rank, other._certificate, hello)  # noqa: SLF001  same
        except TimeoutError as error:
            raise RemoteTimeoutError(f"rank {rank} at {address} said no hello in time") from error
        self._outgoing[rank] = ours
        self._require_open().create_task(self._serve(rank, ours), name=f"memory-to-{rank}")

    async def wait_for(self, rank: int) -> None:
        """See `ControlLane.wait_for`."""
        while rank not in self._incoming:
            self._require_open()
            self._change.clear()
            await self._change.wait()
        self._require_open()

    def send_now(self, rank: int, message: bytes) -> None:
        """See `ControlLane.send_now`."""
        if len(message) >= self._options.max_message_bytes:
            raise LocalLaneFullError(
                f"a message of {len(message)} bytes is over the limit of {self._options.max_message_bytes}"
            )
        deadline = asyncio.get_running_loop().time() + self._options.delivery_deadline_seconds
        self._wire_to(rank).put(encode_frame(b"", message), deadline)

    async def send(self, rank: int, message: bytes) -> None:
        """See `ControlLane.send`."""
        seconds = self._options.delivery_deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                while not self._wire_to(rank).outbox.has_room(len(message)):
                    await self._wire_to(rank).wait()
        except TimeoutError as error:
            raise LocalLaneFullError(
                f"there was no room for a message of {len(message)} bytes within {seconds:g} s"
            ) from error
        self.send_now(rank, message)

    async def flush(self, rank: int) -> None:
        """See `ControlLane.flush`."""
        while not self._wire_to(rank).outbox.empty:
            await self._wire_to(rank).wait()

    async def say_last(self, message: bytes, timeout_seconds: float) -> None:
        """See `ControlLane.say_last`."""
        self._end("the last words were said")
        for wire in (*self._incoming.values(), *self._outgoing.values()):
            wire.outbox.put_last(encode_frame(b"", message))
            wire.changed()
        try:
            async with asyncio.timeout(timeout_seconds):
                for wire in (*self._incoming.values(), *self._outgoing.values()):
                    while not wire.outbox.empty and not wire.closed:
                        await wire.wait()
        except TimeoutError:
            pass
        await self.close()

    async def close(self) -> None:
        """See `ControlLane.close`."""
        self._end("it is closed")
        self._closed = True
        self._network.lanes.pop(self._address, None)
        for wire in (*self._incoming.values(), *self._outgoing.values()):
            wire.close()

    def _require_open(self) -> asyncio.TaskGroup:
        if self._ended or self._group is None:
            raise LocalLaneStateError(f"the control lane has ended: {self._ended or 'it is not bound'}")
        return self._group

    def _wire_to(self, rank: int) -> "_Wire":
        self._require_open()
        wire = self._outgoing.get(rank) or self._incoming.get(rank)
        if wire is None:
            raise LocalLaneStateError(f"there is no connection to rank {rank}")
        return wire

    async def _welcome(self, caller: "MemoryControlLane", hello: bytes) -> tuple[bytes, "_Wire"]:
        """Takes a call; returns our hello and the caller's end of the wire."""
        certificate = caller._certificate  # noqa: SLF001  the other end is of this class
        try:
            self._handshake.check_certificate(None, certificate)
            rank = await self._handshake.check_hello(None, certificate, hello)
            self._require_new(rank)
        except RemoteAuthenticationError as error:
            if not self._ended:
                self._events.stranger(str(error))
            raise RemotePeerLostError("it closed the connection") from error
        answer = await self._handshake.hello()
        theirs, ours = _Wire(self._options.max_queue_bytes), _Wire(self._options.max_queue_bytes)
        theirs.other, ours.other = ours, theirs
        theirs.reader, ours.reader = self, caller
        self._incoming[rank] = ours
        self._change.set()
        self._require_open().create_task(self._serve(rank, ours), name=f"memory-from-{rank}")
        return answer, theirs

    def _require_new(self, rank: int) -> None:
        if rank in self._incoming:
            raise RemoteAuthenticationError(f"rank {rank} is connected already")

    async def _serve(self, rank: int, wire: "_Wire") -> None:
        """Reads what the other end has put, and watches over what we have."""
        clock = asyncio.get_running_loop().time
        silent_since: float | None = None
        while not self._closed:
            if wire.other.closed:
                return self._lose(rank, "it closed the connection")
            if wire.outbox.is_overdue(clock()):
                return self._lose(rank, "it has not taken a message in time")
            if wire.reader.frozen.is_set():
                silent_since = silent_since or clock()
                if clock() - silent_since >= self._options.silence_deadline_seconds:
                    return self._lose(rank, "it has answered no ping in time")
            else:
                silent_since = None
            if self.frozen.is_set() or (frame := wire.other.outbox.take()) is None:
                await wire.wait_a_tick(self._options.ping_interval_seconds / 4)
                continue
            wire.other.outbox.written()
            wire.other.changed()
            self._events.message(rank, frame[4:])
        return None

    def _lose(self, rank: int, reason: str) -> None:
        if not self._ended:
            self._end(f"rank {rank} was lost: {reason}")
            self._events.lost(rank, reason)

    def _end(self, reason: str) -> None:
        self._ended = self._ended or reason
        self._change.set()
        for wire in (*self._incoming.values(), *self._outgoing.values()):
            wire.changed()


class _Wire:
    """One end of a connection: what it has queued for the other one."""

    other: "_Wire"
    reader: MemoryControlLane

    def __init__(self, max_bytes: int) -> None:
        self.outbox = Outbox(max_bytes)
        self.closed = False
        self._events: set[asyncio.Event] = set()

    def put(self, frame: bytes, deadline: float) -> None:
        self.outbox.put(frame, deadline)
        self.changed()

    def close(self) -> None:
        self.closed = True
        self.changed()

    def changed(self) -> None:
        """Wakes both ends."""
        for event in (*self._events, *self.other._events):  # noqa: SLF001  the other end is of this class
            event.set()

    async def wait(self) -> None:
        """Returns after the next change."""
        event = asyncio.Event()
        self._events.add(event)
        try:
            await event.wait()
        finally:
            self._events.discard(event)

    async def wait_a_tick(self, seconds: float) -> None:
        """Returns after the next change or that time."""
        try:
            async with asyncio.timeout(seconds):
                await self.wait()
        except TimeoutError:
            pass
