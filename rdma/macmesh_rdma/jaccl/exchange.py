"""An ordered all-gather of bytes among ranks, over whatever joins them: how a group exchanges its addresses."""

import queue
import struct
import time
from collections.abc import Callable
from typing import Protocol

from macmesh_rdma.errors import (
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    RemoteTransportError,
)

_HEADER = struct.Struct(">IH")


class Exchange(Protocol):
    """All ranks call it equally often, each from one thread."""

    def all_gather(self, data: bytes, timeout_seconds: float) -> list[bytes]:
        """What every rank gave, in the order of the ranks.

        Raises:
            RemoteTimeoutError: not all of it came in time.
            RemotePeerLostError: a rank was lost.
            RemoteMismatchError: another round's data came.
        """


class RingExchange:
    """An `Exchange` over messages to the next rank and from the previous one, such as a control lane's.

    Every rank sends its own data and passes on what the others sent, so it needs only the connections of a
    pipeline. After an error it gathers no more.

    Args:
        rank: this rank.
        size: number of ranks.
        send_next: sends a message to the next rank, in order; called on the thread that gathers.
    """

    def __init__(self, rank: int, size: int, send_next: Callable[[bytes], None]) -> None:
        self._rank = rank
        self._size = size
        self._send_next = send_next
        self._inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._round = 0
        self._lost = ""

    def deliver(self, message: bytes) -> None:
        """Takes a message of the previous rank; from any thread."""
        self._inbox.put(message)

    def fail(self, reason: str) -> None:
        """Ends every gather, now and later; from any thread."""
        self._lost = reason
        self._inbox.put(None)

    def all_gather(self, data: bytes, timeout_seconds: float) -> list[bytes]:
        """See `Exchange.all_gather`."""
        try:
            return self._gather(data, timeout_seconds)
        except RemoteTransportError as error:
            self._lost = self._lost or str(error)
            raise

    def _gather(self, data: bytes, timeout_seconds: float) -> list[bytes]:
        deadline = time.monotonic() + timeout_seconds
        self._round += 1
        gathered = {self._rank: data}
        message = _HEADER.pack(self._round, self._rank) + data
        for step in range(1, self._size):
            self._send_next(message)
            message = self._receive(deadline, timeout_seconds)
            origin = (self._rank - step) % self._size
            if len(message) < _HEADER.size or _HEADER.unpack_from(message) != (self._round, origin):
                raise RemoteMismatchError(
                    f"expected round {self._round} of rank {origin}, the previous rank sent something else"
                )
            gathered[origin] = message[_HEADER.size :]
        return [gathered[rank] for rank in range(self._size)]

    def _receive(self, deadline: float, timeout_seconds: float) -> bytes:
        if self._lost:
            raise RemotePeerLostError(f"the exchange has ended: {self._lost}")
        try:
            message = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise RemoteTimeoutError(
                f"rank {(self._rank - 1) % self._size} sent nothing in round {self._round} within "
                f"{timeout_seconds:g} s"
            ) from None
        if message is None:
            raise RemotePeerLostError(f"the exchange has ended: {self._lost}")
        return message
