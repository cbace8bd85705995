"""The knobs of the link providers, and the memory that they imply."""

import dataclasses
import hashlib
import math
from typing import Literal, Self

from macmesh_rdma.errors import LocalOptionError

Provider = Literal["shm", "tcp", "verbs"]

MOST_FRAME_BYTES = 1 << 26
MOST_SOCKETS_PER_LINK = 16
_MOST_NUM_BUFFERS = 4096
_MOST_BUFFER_SIZES = 12
_MOST_OUTSTANDING = 65536
_MOST_SPIN_US = 10_000.0
_LEAST_FRAME_BYTES = 1024
# Of native/shm/layout.h.
_PAGE_BYTES = 16384
_SLOT_BYTES = 128
# Of native/verbs/link_fit.h.
_VERBS_PAGE_BYTES = 4096
_VERBS_SMALL_BYTES = 8192
_VERBS_SMALL_BUFFERS = 4
_VERBS_REPORT_BUFFERS = 4
_VERBS_REPORT_RECEIVES = 2
TCP_STAGING_BYTES = 16384
"""What a socket of a ``tcp`` link reads headers into."""


@dataclasses.dataclass(frozen=True)
class LinkOptions:
    """The knobs of a link; both ends must have the same.

    Attributes:
        num_buffers: Buffers of each size class and direction; all of them may be in flight.
        frame_bytes: Bytes of a buffer of the smallest class; a power of two.
        buffer_sizes: Number of size classes; each is twice as large as the one before.
        max_outstanding: Frames in flight per direction.
        spin_us: Microseconds that a wait spins before it blocks.
        sockets_per_link: Sockets of a ``tcp`` link.
        checksum_payloads: Whether every frame carries a CRC-32C of its payload, beside that of its header.

    Raises:
        LocalOptionError: a value is out of its range.
    """

    num_buffers: int = 8
    frame_bytes: int = 65536
    buffer_sizes: int = 6
    max_outstanding: int = 256
    spin_us: float = 100.0
    sockets_per_link: int = 1
    checksum_payloads: bool = False

    def __post_init__(self) -> None:
        _require_within("num_buffers", self.num_buffers, 1, _MOST_NUM_BUFFERS)
        _require_within("frame_bytes", self.frame_bytes, _LEAST_FRAME_BYTES, MOST_FRAME_BYTES)
        _require_within("buffer_sizes", self.buffer_sizes, 1, _MOST_BUFFER_SIZES)
        _require_within("max_outstanding", self.max_outstanding, 1, _MOST_OUTSTANDING)
        _require_within("sockets_per_link", self.sockets_per_link, 1, MOST_SOCKETS_PER_LINK)
        if not isinstance(self.checksum_payloads, bool):
            raise LocalOptionError(
                f"checksum_payloads is {self.checksum_payloads!r}; it must be true or false"
            )
        if self.frame_bytes & (self.frame_bytes - 1):
            raise LocalOptionError(f"frame_bytes is {self.frame_bytes}; it must be a power of two")
        if not (math.isfinite(self.spin_us) and 0 <= self.spin_us <= _MOST_SPIN_US):
            raise LocalOptionError(f"spin_us is {self.spin_us}; it must be from 0 to {_MOST_SPIN_US:g}")

    @classmethod
    def preset(cls, name: str) -> Self:
        """The options of a preset.

        Args:
            name: "latency" (the defaults) or "throughput" (64 buffers: more in flight, eight times the memory).

        Raises:
            LocalOptionError: there is no such preset.
        """
        match name:
            case "latency":
                return cls()
            case "throughput":
                return cls(num_buffers=64)
            case _:
                raise LocalOptionError(f"{name!r} is no preset; there are 'latency' and 'throughput'")

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers of one direction: num_buffers x frame_bytes x (2^buffer_sizes - 1)."""
        return self.num_buffers * self.frame_bytes * ((1 << self.buffer_sizes) - 1)

    @property
    def shm_bytes(self) -> int:
        """Bytes of the shared memory of one direction: a control page, a ring of frame slots, the buffers."""
        slots = -(-self.max_outstanding * _SLOT_BYTES // _PAGE_BYTES) * _PAGE_BYTES
        return _PAGE_BYTES + slots + self.buffer_bytes

    def verbs_bytes(self, cables: int = 1) -> int:
        """Bytes that a ``verbs`` link over so many cables registers, where its devices hold all that is asked for.

        For each cable: the buffers to send from, as many to receive into, and a few small ones for reports (with
        several cables one more of each size, for what a cable lost). Small frames have buffers of their own.
        """
        first = -(-self.frame_bytes // _VERBS_PAGE_BYTES) * _VERBS_PAGE_BYTES
        sizes = [first << number for number in range(self.buffer_sizes)]
        if first > _VERBS_SMALL_BYTES:
            sizes.insert(0, _VERBS_SMALL_BYTES)
        spare = int(cables > 1)
        small = max(self.num_buffers, _VERBS_SMALL_BUFFERS)
        total = sizes[0] * (2 * small + _VERBS_REPORT_BUFFERS + _VERBS_REPORT_RECEIVES + spare)
        total += sum(size * (2 * self.num_buffers + spare) for size in sizes[1:])
        return cables * total

    def pool_bytes(self, provider: Provider, links: int) -> int:
        """Bytes of memory that so many links cost on each side, as the native links count them.

        A ``shm`` link has both directions mapped on both sides; the machine holds them once. A ``tcp`` link moves
        bytes straight from and to the arrays. A ``verbs`` link has one registered region for both directions.
        """
        if provider == "shm":
            return links * 2 * self.shm_bytes
        if provider == "verbs":
            return links * self.verbs_bytes()
        return links * self.sockets_per_link * TCP_STAGING_BYTES

    def fitted(self, provider: Provider, links: int, most_pool_bytes: int) -> Self:
        """These options with as many buffers as the limit allows, at most `num_buffers`.

        Compare with ``num_buffers`` to see whether they were shrunk.

        Raises:
            LocalOptionError: even one buffer of each size is too much.
        """
        low, high = 0, self.num_buffers
        while low < high:
            middle = (low + high + 1) // 2
            if dataclasses.replace(self, num_buffers=middle).pool_bytes(provider, links) <= most_pool_bytes:
                low = middle
            else:
                high = middle - 1
        if low == 0:
            least = dataclasses.replace(self, num_buffers=1).pool_bytes(provider, links)
            raise LocalOptionError(
                f"the buffers of {links} {provider} links may have {most_pool_bytes} bytes, but one of each size "
                f"has {least} already; lower frame_bytes or buffer_sizes"
            )
        return dataclasses.replace(self, num_buffers=low)

    def digest(self, provider: str) -> bytes:
        """16 bytes that are equal where two ends agree on the options and on the provider that was asked for.

        How long a side spins is its own affair.
        """
        values = (
            self.num_buffers,
            self.frame_bytes,
            self.buffer_sizes,
            self.max_outstanding,
            self.sockets_per_link,
            self.checksum_payloads,
        )
        return hashlib.sha256(repr((values, provider)).encode()).digest()[:16]


def _require_within(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise LocalOptionError(f"{name} is {value!r}; it must be a whole number from {least} to {most}")
