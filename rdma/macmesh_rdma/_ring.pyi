"""The ring of messages in shared memory. Imports no mlx. See native/ring/spsc.h for the layout."""

LAYOUT_VERSION: int
MAX_MESSAGE_BYTES: int
"""Length of the longest message."""

class CorruptError(Exception):
    """The other side's values in shared memory cannot be; nothing works any more."""

class RefusedError(Exception):
    """The message is too long, the queue is at its limit, or `Writer.end` was called."""

def memory_bytes(capacity_bytes: int) -> int:
    """Bytes of the shared memory of a ring.

    Raises:
        ValueError: the capacity is no power of two, or out of bounds.
    """

def format(memory: int, capacity_bytes: int) -> None:  # noqa: A001  the word for it
    """Makes an empty ring of a descriptor's memory, before anybody attaches to it.

    Raises:
        ValueError: the capacity is no power of two, or the memory is too small.
    """

class Writer:
    """The producer of a ring. Every call may come from any thread, and none blocks.

    Args:
        memory: descriptor of the ring's memory; may be closed afterwards.
        doorbell: descriptor of the connected socket; must stay open until `end`.
        most_pending_bytes: how much may wait for space in the ring.

    Raises:
        RuntimeError: the memory cannot be mapped, holds no ring of this layout, or the ring has a producer.
    """

    def __init__(self, memory: int, doorbell: int, most_pending_bytes: int) -> None: ...
    def send(self, message: bytes) -> None:
        """Puts a message into the ring, or into the queue where there is no space.

        Raises:
            CorruptError: see there.
            RefusedError: see there.
        """

    def push(self) -> None:
        """Moves what it can from the queue into the ring; to be called when the doorbell rings.

        Raises:
            CorruptError: see there.
        """

    def end(self) -> None:
        """Refuses everything from now on; says goodbye if nothing waits. Harmless when repeated."""

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for space in the ring."""

    @property
    def idle(self) -> bool:
        """Whether no message waits."""

    @property
    def rung(self) -> int:
        """How often the other side had to be woken."""

class Reader:
    """The consumer of a ring, for one thread. Arguments and errors as those of `Writer`."""

    def __init__(self, memory: int, doorbell: int) -> None: ...
    def read(self) -> bytes | None:
        """The next message. None: there is none, and the doorbell will ring when one comes.

        Raises:
            CorruptError: see there.
        """

    @property
    def ended(self) -> bool:
        """Whether the producer said goodbye. Ask when the doorbell has closed and `read` gave None."""
