"""What two ranks say to each other while they connect, as conversations of `reactor`."""

import array
import errno
import json
import os
import selectors
import socket
import struct
from collections.abc import Generator
from typing import TypeVar

from macmesh_rdma.errors import (
    LocalResourceError,
    RemoteCorruptError,
    RemotePeerLostError,
    TransportError,
)
from macmesh_rdma.joining.handshake import Handshake
from macmesh_rdma.joining.reactor import Wait

T = TypeVar("T")
Talk = Generator[Wait, None, T]

MOST_RECORD_BYTES = 4096
_LENGTH = struct.Struct("<H")
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class NotListeningError(Exception):
    """Nobody listens there.

    Attributes:
        for_ever: Whether nobody will: the path of the socket is gone.
    """

    def __init__(self, text: str, *, for_ever: bool = False) -> None:
        super().__init__(text)
        self.for_ever = for_ever


def local_or_lost(error: OSError, peer: int | None, what: str) -> TransportError:
    """What a failed call on a socket means: we have run out of something, or the peer is gone."""
    if error.errno in _OUT_OF_RESOURCES:
        return LocalResourceError(f"{what}: {error.strerror}", peer=peer)
    return RemotePeerLostError(f"{what}: {error.strerror or error}", peer=peer)


def connect(sock: socket.socket, address: tuple[str, int] | str) -> Talk[None]:
    """Connects a non-blocking socket.

    Raises:
        NotListeningError: nobody listens there, or too many wait already.
        OSError: it cannot be reached.
    """
    code = sock.connect_ex(address)
    if code in (errno.EINPROGRESS, errno.EINTR):
        yield Wait(sock, selectors.EVENT_WRITE)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    # EAGAIN: the queue of a Unix socket is full.
    if code in (errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN, errno.ECONNRESET):
        raise NotListeningError(os.strerror(code), for_ever=code == errno.ENOENT)
    if code:
        raise OSError(code, os.strerror(code))
    # TCP of one machine can connect to itself where nobody listens on a port of the range that dialling uses.
    if sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
        raise NotListeningError("nobody but ourselves")


def send_all(sock: socket.socket, data: bytes) -> Talk[None]:
    """Sends everything."""
    left = memoryview(data)
    while left:
        try:
            left = left[sock.send(left) :]
        except BlockingIOError:
            yield Wait(sock, selectors.EVENT_WRITE)


def receive_exactly(sock: socket.socket, count: int) -> Talk[bytes]:
    """Receives so many bytes and not one more.

    Raises:
        EOFError: the peer closed before.
    """
    received = bytearray()
    while len(received) < count:
        try:
            data = sock.recv(count - len(received))
        except BlockingIOError:
            yield Wait(sock)
            continue
        if not data:
            raise EOFError
        received += data
    return bytes(received)


def shake_hands(sock: socket.socket, handshake: Handshake) -> Talk[None]:
    """Runs a handshake to its end; what it has left to send is sent in any case.

    Raises:
        EOFError: the peer closed before.
        TransportError: see `Handshake.feed`.
    """
    yield from send_all(sock, handshake.take_outgoing())
    while handshake.missing_bytes:
        data = yield from receive_exactly(sock, handshake.missing_bytes)
        try:
            handshake.feed(data)
        except TransportError:
            yield from send_all(sock, handshake.take_outgoing())
            raise
        yield from send_all(sock, handshake.take_outgoing())


def encode_record(record: dict[str, str]) -> bytes:
    """A record as it travels; longer texts are cut."""
    cut = {key: text[:1000] for key, text in record.items()}
    raw = json.dumps(cut).encode()
    while len(raw) > MOST_RECORD_BYTES:  # characters that JSON writes as several
        cut = {key: text[: len(text) // 2] for key, text in cut.items()}
        raw = json.dumps(cut).encode()
    return _LENGTH.pack(len(raw)) + raw


def receive_record(sock: socket.socket, peer: int) -> Talk[dict[str, str]]:
    """Receives a record of an authenticated peer.

    Raises:
        EOFError: the peer closed before.
        RemoteCorruptError: it is none.
    """
    (length,) = _LENGTH.unpack((yield from receive_exactly(sock, _LENGTH.size)))
    if length > MOST_RECORD_BYTES:
        raise RemoteCorruptError(f"rank {peer} sent a record of {length} bytes", peer=peer)
    raw = yield from receive_exactly(sock, length)
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not all(isinstance(value, str) for value in record.values()):
        raise RemoteCorruptError(f"rank {peer} sent {raw[:40]!r}, which is no record", peer=peer)
    return record


def send_descriptors(sock: socket.socket, descriptors: list[int]) -> Talk[None]:
    """Passes descriptors over a Unix socket, with one byte."""
    while True:
        try:
            socket.send_fds(sock, [b"F"], descriptors)
        except BlockingIOError:
            yield Wait(sock, selectors.EVENT_WRITE)
        else:
            return


def receive_descriptors(sock: socket.socket, count: int) -> Talk[list[int]]:
    """Receives what `send_descriptors` passed; they are ours to close.

    Raises:
        EOFError: the peer closed before.
        LocalResourceError: not all of them came, because we have too many open.
    """
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    yield Wait(sock)
    raw, ancillary, told, _ = sock.recvmsg(1, socket.CMSG_SPACE(count * 4), flags)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if raw and len(descriptors) == count and not told & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003  positional only
        return list(descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    if not raw:
        raise EOFError
    raise LocalResourceError(
        f"{len(descriptors)} of {count} descriptors of shared memory came: too many open files here"
    )
