"""Joins a process and one that it starts by a pair of message ports.

The parent makes a `LocalConnection`, starts the child with its arguments and descriptors, and opens its own port.
The child hands the same arguments to `adopt_port`. Rings are used where shared memory can be had, the socket alone
where not.
"""

import contextlib
import os
import socket
from typing import Self

from macmesh_rdma.errors import LocalPortError, LocalSharedMemoryError
from macmesh_rdma.messages.port import MessagePort
from macmesh_rdma.messages.stream_port import StreamPort


class LocalConnection:
    """What is handed to a child, and kept, to talk to it. Close it once the child has been started.

    Args:
        rings: False uses the socket alone.
    """

    def __init__(self, *, rings: bool = True) -> None:
        self.why_no_ring = "" if rings else "the socket was asked for"
        """Why there are no rings; empty where there are."""
        ours, self._theirs = socket.socketpair()
        self._ours: socket.socket | None = ours
        self._rings: tuple[int, ...] = ()
        if rings:
            try:
                self._rings = _two_rings()
            except LocalSharedMemoryError as error:
                self.why_no_ring = str(error)

    @property
    def arguments(self) -> list[str]:
        """For the child's command line: ``--fd N``, and ``--ring-fds M,M`` where there are rings."""
        arguments = ["--fd", str(self._theirs.fileno())]
        if self._rings:
            arguments += ["--ring-fds", ",".join(map(str, self._rings))]
        return arguments

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the child must inherit."""
        return (self._theirs.fileno(), *self._rings)

    def open_port(self) -> MessagePort:
        """Our end; on the event loop that will use it. It outlives this object.

        Raises:
            LocalSharedMemoryError: the rings cannot be mapped.
            LocalPortError: it was opened before, or this is closed.
        """
        if self._ours is None:
            raise LocalPortError("the parent's end was opened or given up before")
        if self._rings:
            from macmesh_rdma.messages.ring_port import RingPort  # noqa: PLC0415  the socket needs no native module

            to_child, to_parent = self._rings
            port: MessagePort = RingPort(self._ours, outgoing=to_child, incoming=to_parent)
        else:
            port = StreamPort(self._ours)
        self._ours = None
        return port

    def close(self) -> None:
        """Gives up the child's ends, and ours where no port was opened; harmless when repeated."""
        if self._ours is not None:
            self._ours.close()
            self._ours = None
        self._theirs.close()
        for descriptor in self._rings:
            os.close(descriptor)
        self._rings = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def adopt_port(connection: int, rings: str = "") -> MessagePort:
    """The child's end, of what came by `LocalConnection.arguments`.

    Args:
        connection: descriptor of the socket.
        rings: descriptors of the rings, to this process and from it; empty where there are none.

    Raises:
        LocalPortError: the descriptors are none of a `LocalConnection`.
        LocalSharedMemoryError: the rings are of another build, or in use.
    """
    try:
        descriptors = [int(text) for text in rings.split(",")] if rings else []
    except ValueError:
        descriptors = []
    if len(descriptors) != (2 if rings else 0):
        raise LocalPortError(f"--ring-fds takes two descriptors, not {rings!r}")
    try:
        endpoint = socket.socket(fileno=connection)
    except OSError as error:
        raise LocalPortError(f"descriptor {connection} is no socket of a parent: {error}") from error
    try:
        # A child of ours that held it would hide our death.
        endpoint.set_inheritable(False)
        if not descriptors:
            return StreamPort(endpoint)
        from macmesh_rdma.messages.ring_port import RingPort  # noqa: PLC0415  as above

        to_us, from_us = descriptors
        return RingPort(endpoint, outgoing=from_us, incoming=to_us)
    except BaseException:
        endpoint.close()
        raise
    finally:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _two_rings() -> tuple[int, int]:
    try:
        from macmesh_rdma.messages.ring_port import create_ring  # noqa: PLC0415  as above
    except ImportError as error:
        raise LocalSharedMemoryError(f"the native module cannot be loaded: {error}") from error
    first = create_ring()
    try:
        return first, create_ring()
    except BaseException:
        os.close(first)
        raise
