"""What a port of messages promises, whatever carries it."""

import abc

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""No message comes near this: a prompt of 200,000 tokens is under 1 MB. A longer one is garbage."""
HIGH_WATER_BYTES = 64 * 1024
"""`MessagePort.drain` waits while more than this is pending."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""A port refuses to queue more: the other side takes nothing, and whoever sends does not wait for it."""


class MessagePort(abc.ABC):
    """One end of a connection that carries messages of bytes between two processes of one machine, both ways.

    * Messages arrive whole, once and in the order in which they were sent. They may be empty.
    * The end is told apart: after an orderly `close` of the other side `receive` gives None, after its death
      `RemotePeerLostError`; both only after everything that it sent before.
    * Nothing polls: a port on which nothing happens costs no CPU.

    Threads: a port belongs to the event loop that made it, and all calls come from its thread. Only `send` and
    `pending_bytes` may be called from any thread; messages of one thread keep their order.
    """

    kind: str
    """What carries it: "ring", "socket" or "memory"."""

    @abc.abstractmethod
    def send(self, message: bytes) -> None:
        """Hands a message over, or queues it where the other side has no space; never blocks.

        Whether it arrives is known only by an answer. Call `drain` now and then, or know by other means that the
        other side keeps up.

        Raises:
            LocalPortError: the port is closed; the message is longer than `MAX_MESSAGE_BYTES`; or more than
                `MAX_PENDING_BYTES` would be queued.
            RemotePeerLostError: the other side is known to have gone.
            RemoteMismatchError: the other side broke the protocol (where the provider can tell).
        """

    @property
    @abc.abstractmethod
    def pending_bytes(self) -> int:
        """Bytes that are queued in this process, because the other side has no space for them."""

    @abc.abstractmethod
    async def drain(self) -> None:
        """Returns once no more than `HIGH_WATER_BYTES` are pending. Set a deadline around it.

        Raises:
            LocalPortError: the port is closed.
            RemotePeerLostError: the other side has gone.
        """

    @abc.abstractmethod
    async def flush(self) -> None:
        """Returns once nothing is queued in this process. Set a deadline around it; errors as of `drain`."""

    @abc.abstractmethod
    async def receive(self) -> bytes | None:
        """The next message, or None where the other side has closed. For one task at a time.

        Sets no deadline: silence is normal. A cancelled call loses no message.

        Raises:
            LocalPortError: the port is closed, or another task is receiving.
            RemotePeerLostError: the other side died, or closed with messages still queued.
            RemoteMismatchError: what came is no message; the port is broken from then on.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Says goodbye and gives everything up; harmless when repeated. What is still queued is lost."""
