"""The memory that two ranks share for one direction of payloads: where what lies. Pure, no mlx.

::

    0     SENT          payloads that the sender has written, counted from 1
    64    READ          payloads that the receiver has copied out
    128   RECEIVER_END  why the receiver ended the lane; 0 while it has not
    192   SENDER_END    the same of the sender
    256   signatures    of what lies in each buffer
    4096  buffers

All words are 64 bits and each has one side that writes it. Payload n lies in buffer ``(n - 1) % buffers``. The sender
writes it once ``READ >= n - buffers``, then raises ``SENT`` to n; the receiver takes it once ``SENT >= n``, then raises
``READ`` to n.
"""

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Sequence

from macmesh_rdma.errors import LocalLaneStateError

SENT, READ, RECEIVER_END, SENDER_END, SIGNATURES, BUFFERS = 0, 64, 128, 192, 256, 4096
WORD_BYTES = 8
MOST_BUFFERS = (BUFFERS - SIGNATURES) // WORD_BYTES
_BUFFER_ALIGNMENT, _ARRAY_ALIGNMENT = 256, 16


class End(enum.IntEnum):
    """What a side writes where it ends."""

    NONE = 0
    TIMED_OUT = 1
    """The other side was silent for too long."""
    MISMATCH = 2
    """Something else came than was expected."""
    PEER_ENDED = 3
    """The other side had ended."""
    ELSEWHERE = 4
    """This rank ended because of another of its peers."""
    ABORTED = 5
    """It was told to."""
    CLOSED = 6
    """In order."""


@dataclasses.dataclass(frozen=True)
class PayloadLayout:
    """Where the arrays of a payload lie in its buffer."""

    offsets: tuple[int, ...]
    size_bytes: int


def layout_of(sizes: Sequence[int]) -> PayloadLayout:
    """Where arrays of so many bytes lie."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += _round_up(size, _ARRAY_ALIGNMENT)
    return PayloadLayout(tuple(offsets), end)


@functools.lru_cache(maxsize=1024)
def signature_of(facts: tuple[tuple[tuple[int, ...], str], ...]) -> int:
    """A number that tells payloads of other shapes and types apart; below 2^63."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1


@dataclasses.dataclass(frozen=True)
class GraphMemory:
    """The memory of one direction.

    Args:
        payload_bytes: of the largest payload, each array's bytes rounded up to 16.
        buffers: payloads that may be on their way.

    Raises:
        LocalLaneStateError: no memory can be so.
    """

    payload_bytes: int
    buffers: int

    def __post_init__(self) -> None:
        if self.payload_bytes < 1 or not 1 <= self.buffers <= MOST_BUFFERS:
            raise LocalLaneStateError(
                f"{self.buffers} buffers of {self.payload_bytes} bytes cannot be: 1 to {MOST_BUFFERS} of 1 or more"
            )

    @property
    def stride_bytes(self) -> int:
        """From one buffer to the next."""
        return _round_up(self.payload_bytes, _BUFFER_ALIGNMENT)

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return BUFFERS + self.buffers * self.stride_bytes

    def buffer(self, number: int) -> int:
        """Offset of the buffer of a payload, counted from 1."""
        return BUFFERS + self._index(number) * self.stride_bytes

    def signature(self, number: int) -> int:
        """Offset of the word that says what lies in it."""
        return SIGNATURES + self._index(number) * WORD_BYTES

    def credit(self, number: int) -> int:
        """So many payloads must have been read before this one may be written."""
        return number - self.buffers

    def require(self, layout: PayloadLayout) -> None:
        """Lets a payload pass that fits a buffer.

        Raises:
            LocalLaneStateError: it does not.
        """
        if layout.size_bytes > self.payload_bytes:
            raise LocalLaneStateError(
                f"a payload of {layout.size_bytes} bytes is larger than a buffer of {self.payload_bytes}"
            )

    def _index(self, number: int) -> int:
        if number < 1:
            raise LocalLaneStateError(f"payloads are counted from 1, not {number}")
        return (number - 1) % self.buffers


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
