"""Host transfers in memory, for ranks that run as threads of one process."""

import ctypes
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, cast

import mlx.core as mx

from macmesh_rdma import _group
from macmesh_rdma.errors import (
    LocalLaneStateError,
    RemoteAbortedError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.host_lane import MOST_MESSAGE_BYTES, HostLane

_Parcel = list[mx.array] | bytes
_Failure = tuple[type[TransportError], str, int | None]


class _Room:
    """What the ranks have in common."""

    def __init__(self, size: int) -> None:
        self.changed = threading.Condition()
        self.queues: dict[tuple[int, int], deque[_Parcel]] = {}
        self.busy: set[tuple[int, int, str]] = set()
        self.closed: set[int] = set()
        self.failures: dict[int, _Failure] = {}
        self.size = size

    def fail(self, rank: int, failure: _Failure) -> None:
        """The first failure of a rank; the others learn of it as from a peer that gave up."""
        if rank in self.failures or rank in self.closed:
            return
        self.failures[rank] = failure
        kind, text, blamed = failure
        own_will = issubclass(kind, LocalLaneStateError)
        for other in range(self.size):
            if other not in self.failures and other not in self.closed:
                blames = rank if own_will or blamed is None or blamed == other else blamed
                told = RemoteAbortedError if own_will or issubclass(kind, RemotePeerLostError) else kind
                self.failures[other] = (told, f"rank {rank} gave up: {text}", blames)
        self.changed.notify_all()


class MemoryHostLane(HostLane):
    """One rank's host transfers in memory; made by `memory_host_lanes`.

    Sends never wait. A rank that is `kill`ed is gone without a word.
    """

    def __init__(self, rank: int, room: _Room) -> None:
        self._rank = rank
        self._room = room

    def send(self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float) -> None:
        """See `HostLane.send`."""
        given = list(arrays)
        _require_memory(given)
        self._send(peer, [_copy(array) for array in given], timeout_seconds)

    def receive_into(self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float) -> None:
        """See `HostLane.receive_into`."""
        given = list(arrays)
        _require_memory(given)
        came = self._receive_arrays(peer, timeout_seconds)
        if [_facts(array) for array in came] != [_facts(array) for array in given]:
            with self._room.changed:
                text = (
                    f"rank {peer} sent other arrays than rank {self._rank} expected: expected "
                    f"{[_facts(array) for array in given]}, came {[_facts(array) for array in came]}"
                )
                self._room.fail(self._rank, (RemoteMismatchError, text, peer))
                self._raise("receive_into")
        for into, array in zip(given, came, strict=True):
            if array.size:
                ctypes.memmove(_bytes_of(into), _bytes_of(array), array.nbytes)

    def receive(self, peer: int, timeout_seconds: float) -> list[mx.array]:
        """See `HostLane.receive`."""
        return self._receive_arrays(peer, timeout_seconds)

    def send_message(self, peer: int, data: bytes, timeout_seconds: float) -> None:
        """See `HostLane.send_message`."""
        if len(data) > MOST_MESSAGE_BYTES:
            raise LocalLaneStateError(f"{len(data)} bytes are more than the largest message")
        self._send(peer, bytes(data), timeout_seconds)

    def receive_message(self, peer: int, timeout_seconds: float | None) -> bytes:
        """See `HostLane.receive_message`."""
        return cast("bytes", self._receive(peer, timeout_seconds, "message"))

    def abort(self, reason: str) -> None:
        """See `HostLane.abort`."""
        with self._room.changed:
            self._room.fail(self._rank, (LocalLaneStateError, reason, None))

    def close(self) -> None:
        """See `HostLane.close`."""
        with self._room.changed:
            self._room.closed.add(self._rank)
            self._room.changed.notify_all()

    def kill(self) -> None:
        """Goes as a process does that is killed."""
        with self._room.changed:
            self._room.closed.add(self._rank)
            for other in range(self._room.size):
                if other not in self._room.closed:
                    lost = (RemotePeerLostError, f"rank {self._rank} has gone", self._rank)
                    self._room.failures.setdefault(other, lost)
            self._room.changed.notify_all()

    def _send(self, peer: int, parcel: _Parcel, timeout_seconds: float) -> None:
        with self._alone(peer, "send", timeout_seconds):
            if peer in self._room.closed:
                text = f"rank {peer} has closed the group"
                self._room.fail(self._rank, (RemotePeerLostError, text, peer))
                self._raise("send")
            self._room.queues.setdefault((self._rank, peer), deque()).append(parcel)
            self._room.changed.notify_all()

    def _receive_arrays(self, peer: int, timeout_seconds: float) -> list[mx.array]:
        return cast("list[mx.array]", self._receive(peer, timeout_seconds, "arrays"))

    def _receive(self, peer: int, timeout_seconds: float | None, kind: str) -> _Parcel:
        deadline = None if timeout_seconds is None else time.monotonic() + min(timeout_seconds, 1e6)
        with self._alone(peer, "receive", 1 if timeout_seconds is None else timeout_seconds):
            queue = self._room.queues.setdefault((peer, self._rank), deque())
            while not queue:
                self._require_open("receive")
                if peer in self._room.closed:
                    text = f"rank {peer} has closed the group"
                    self._room.fail(self._rank, (RemotePeerLostError, text, peer))
                elif deadline is not None and time.monotonic() >= deadline:
                    text = f"nothing came from rank {peer} for {timeout_seconds:g} s"
                    self._room.fail(self._rank, (RemoteTimeoutError, text, peer))
                else:
                    self._room.changed.wait(None if deadline is None else deadline - time.monotonic())
            parcel = queue.popleft()
            if (kind == "message") != isinstance(parcel, bytes):
                text = f"rank {peer} sent something else than rank {self._rank} expected: expected {kind}"
                self._room.fail(self._rank, (RemoteMismatchError, text, peer))
                self._raise("receive")
            return parcel

    @contextmanager
    def _alone(self, peer: int, direction: str, timeout_seconds: float) -> Iterator[None]:
        if not timeout_seconds > 0:
            raise ValueError("timeout_seconds must be a number above 0")
        with self._room.changed:
            self._require_open(direction)
            if peer == self._rank or not 0 <= peer < self._room.size:
                raise LocalLaneStateError(f"rank {self._rank} has no link to rank {peer}")
            key = (self._rank, peer, direction)
            if key in self._room.busy:
                raise LocalLaneStateError(f"another thread is in a host transfer with rank {peer}")
            self._room.busy.add(key)
            try:
                yield
            finally:
                self._room.busy.discard(key)

    def _require_open(self, what: str) -> None:
        if self._rank in self._room.failures:
            self._raise(what)
        if self._rank in self._room.closed:
            raise LocalLaneStateError(f"{what} failed: the group was closed on this rank")

    def _raise(self, what: str) -> NoReturn:
        kind, text, blamed = self._room.failures[self._rank]
        raise kind(f"{what} failed on rank {self._rank}: {text}", peer=blamed)


def _facts(array: mx.array) -> tuple[tuple[int, ...], mx.Dtype]:
    return tuple(array.shape), array.dtype


def _require_memory(arrays: Sequence[mx.array]) -> None:
    try:
        _group.require_memory(arrays)
    except RuntimeError as error:
        raise LocalLaneStateError(str(error)) from error


def _bytes_of(array: mx.array) -> "ctypes.Array[ctypes.c_char]":
    """The array's own memory; it must have some."""
    return (ctypes.c_char * array.nbytes).from_buffer(array)  # type: ignore[arg-type]  # the stub omits the buffer


def _copy(array: mx.array) -> mx.array:
    copy = mx.array(array)
    mx.eval(copy)
    return copy


def memory_host_lanes(size: int) -> list[MemoryHostLane]:
    """The lanes of that many ranks."""
    room = _Room(size)
    return [MemoryHostLane(rank, room) for rank in range(size)]
