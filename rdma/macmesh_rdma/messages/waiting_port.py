"""The part of a message port that waits on the event loop; the same for everything that carries messages."""

import abc
import asyncio

from macmesh_rdma.errors import LocalPortError, RemoteMismatchError, RemotePeerLostError
from macmesh_rdma.messages.port import HIGH_WATER_BYTES, MessagePort

MESSAGES_PER_TURN = 64
"""So many messages that are there already are given out before other tasks get a turn."""


class WaitingPort(MessagePort):
    """Turns "something may have happened" into `receive`, `drain` and `flush`.

    A subclass gives `_take`, `_idle`, `_said_goodbye` and `_release`, and calls `_something_came`, `_space_came`
    and `_other_side_went` on the loop's thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._receiver: asyncio.Future[None] | None = None
        self._senders: set[asyncio.Future[None]] = set()
        self._taken = 0
        self._closed = False
        self._gone = False  # nothing comes any more
        self._unreachable = False  # nothing that we send arrives any more
        self._broken = ""

    @abc.abstractmethod
    def _take(self) -> bytes | None:
        """The next message that has come. After None, `_something_came` is called when there is more.

        Raises:
            RemoteMismatchError: what came is no message.
        """

    @abc.abstractmethod
    def _idle(self) -> bool:
        """Whether nothing is queued."""

    @abc.abstractmethod
    def _said_goodbye(self) -> bool:
        """Whether the other side, which has gone, went in order and everything it sent has been taken."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Says goodbye if nothing is queued, and gives up everything. Called once."""

    async def receive(self) -> bytes | None:
        """See `MessagePort.receive`."""
        if self._taken >= MESSAGES_PER_TURN:
            self._taken = 0
            await asyncio.sleep(0)
        while True:
            self._require_open()
            if self._receiver is not None:
                raise LocalPortError(f"two tasks receive from one {self.kind} port; only one may")
            if self._broken:
                raise RemoteMismatchError(self._broken)
            # Known before the last look: what was sent before the end is there by then.
            gone = self._gone
            try:
                message = self._take()
            except RemoteMismatchError as error:
                self._broken = str(error)
                raise
            if message is not None:
                self._taken += 1
                return message
            if gone:
                if self._said_goodbye():
                    return None
                raise self._lost()
            self._taken = 0
            self._receiver = self._loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None

    async def drain(self) -> None:
        """See `MessagePort.drain`."""
        await self._until_pending(HIGH_WATER_BYTES)

    async def flush(self) -> None:
        """See `MessagePort.flush`."""
        await self._until_pending(None)

    def close(self) -> None:
        """See `MessagePort.close`."""
        if not self._closed:
            self._closed = True
            self._release()
            self._something_came()
            self._space_came()

    async def _until_pending(self, most_bytes: int | None) -> None:
        while True:
            self._require_open()
            if self._unreachable:
                raise self._lost()
            if self._idle() if most_bytes is None else self.pending_bytes <= most_bytes:
                return
            waiting: asyncio.Future[None] = self._loop.create_future()
            self._senders.add(waiting)
            try:
                await waiting
            finally:
                self._senders.discard(waiting)

    def _something_came(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    def _space_came(self) -> None:
        for waiting in self._senders:
            if not waiting.done():
                waiting.set_result(None)

    def _other_side_went(self) -> None:
        self._gone = self._unreachable = True
        self._something_came()
        self._space_came()

    def _require_open(self) -> None:
        if self._closed:
            raise LocalPortError(f"the {self.kind} port is closed")

    def _lost(self) -> RemotePeerLostError:
        return RemotePeerLostError(f"the process at the other end of the {self.kind} port has gone")
