"""What a control lane promises, whatever carries it.

A control lane carries small messages of bytes between the ranks of a plan. It is independent of mlx and of what
carries the tensors, so it goes on working while a tensor lane hangs.
"""

import abc
import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ControlOptions:
    """Bounds of a control lane.

    Attributes:
        max_message_bytes: longest message; a longer frame is garbage and ends the lane.
        max_hello_bytes: longest hello, which comes from somebody who has proved little yet.
        max_queue_bytes: bytes that may wait for one peer; at least one message always fits.
        max_callers: connections that may be in their handshake at once.
        delivery_deadline_seconds: by when the system must have taken a message.
        ping_interval_seconds: distance of the pings.
        silence_deadline_seconds: a ping without an answer for that long means that the peer is lost.
        handshake_deadline_seconds: for the TLS handshake.
        hello_deadline_seconds: for the hellos; includes the wait for what the hello is made of.
        connect_retry_seconds: pause after a refused connection.
    """

    max_message_bytes: int = 16 * 1024 * 1024
    max_hello_bytes: int = 64 * 1024
    max_queue_bytes: int = 32 * 1024 * 1024
    max_callers: int = 64
    delivery_deadline_seconds: float = 5.0
    ping_interval_seconds: float = 2.0
    silence_deadline_seconds: float = 6.0
    handshake_deadline_seconds: float = 10.0
    hello_deadline_seconds: float = 30.0
    connect_retry_seconds: float = 0.1


@dataclasses.dataclass(frozen=True)
class Handshake:
    """Who we are, and who may be at the other end.

    ``check_certificate`` and ``check_hello`` raise `macmesh_rdma.errors.RemoteAuthenticationError` for somebody else.
    """

    hello: Callable[[], Awaitable[bytes]]
    """Our first message on every connection."""
    check_certificate: Callable[[int | None, Mapping[str, Any] | None], None]
    """Given the rank that we called (None where it called us) and its certificate, before any hello."""
    check_hello: Callable[[int | None, Mapping[str, Any] | None, bytes], Awaitable[int]]
    """Given the same and its hello; returns the rank that it has proved to be."""


@dataclasses.dataclass(frozen=True)
class ControlEvents:
    """What a control lane tells; every function is called on the event loop and must not block."""

    message: Callable[[int, bytes], None]
    """The rank that sent it, and the message; in the order in which that rank sent them."""
    lost: Callable[[int, str], None]
    """Once in the life of a lane: which rank was lost or broke the protocol, and how."""
    stranger: Callable[[str], None]
    """Why a connection was turned away. It did no harm."""


class ControlLane(abc.ABC):
    """Carries messages of bytes between one rank and the ranks that it is connected to.

    * Messages to one rank arrive whole, unchanged, in order, and at most once.
    * Nothing is dropped silently: a message that is not taken by the system within its deadline, and a peer that
      answers no ping, end the lane. ``lost`` then tells so, once, and every later `send` raises.
    * What waits for a rank is bounded. A rank that does not read delays no other.
    * All methods are called on the event loop.
    """

    @abc.abstractmethod
    async def bind(self, host: str, group: asyncio.TaskGroup) -> str:
        """Listens on a free port of the host; returns host:port.

        Args:
            host: an IP address.
            group: runs the connections; they end with `close`.

        Raises:
            LocalAddressError: the host cannot be bound.
        """

    @abc.abstractmethod
    async def connect(self, rank: int, address: str) -> None:
        """Connects to a rank, which must be bound; tries again while it refuses. Set a deadline around it.

        Raises:
            LocalLaneStateError: the lane is not bound, has ended, or is connected to this rank.
            RemoteAuthenticationError: somebody else listens there.
            RemotePeerLostError: it cannot be reached, or ended the connection.
            RemoteTimeoutError: it took the connection and said no hello.
        """

    @abc.abstractmethod
    async def wait_for(self, rank: int) -> None:
        """Returns once the rank has connected to us. Set a deadline around it."""

    @abc.abstractmethod
    def send_now(self, rank: int, message: bytes) -> None:
        """Queues a message, at once or not at all.

        Over the connection that we made to the rank, if there is one, else over the one that it made to us.

        Raises:
            LocalLaneFullError: too much waits for this rank already, or the message is too long.
            LocalLaneStateError: there is no connection to this rank, or the lane has ended.
        """

    @abc.abstractmethod
    async def send(self, rank: int, message: bytes) -> None:
        """Queues a message; where too much waits, until it fits or the delivery deadline passes.

        Raises:
            LocalLaneFullError: it did not fit in time.
            LocalLaneStateError: as in `send_now`; also where the lane ended meanwhile.
        """

    @abc.abstractmethod
    async def flush(self, rank: int) -> None:
        """Returns once the system has taken everything that was queued for a rank.

        Raises:
            LocalLaneStateError: as in `send_now`; also where the lane ended meanwhile.
        """

    @abc.abstractmethod
    async def say_last(self, message: bytes, timeout_seconds: float) -> None:
        """Ends the lane with a message to every rank, as far as they can still be reached; then it is closed.

        The message goes ahead of what waits. ``lost`` is not called any more.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Ends all connections and stops listening; harmless when repeated. What waits is given up."""
