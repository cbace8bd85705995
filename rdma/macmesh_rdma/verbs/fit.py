"""What a link over RDMA devices registers: the options, fitted into what both ends' devices can have. Pure.

The same computation as ``native/verbs/link_fit.cpp``, which decides; here it is for the ledger, before there is a link.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from macmesh_rdma.errors import LocalOptionError
from macmesh_rdma.options import LinkOptions

_PAGE_BYTES = 4096
_SMALL_BYTES = 8192
_MOST_QUEUES = 9
_REPORT_RECEIVES = 2
_REPORT_BUFFERS = 4
_LEAST_SMALL = 4
_NO_BOUND = 2**64 - 1
_BOUNDS = (
    "max_send_requests",
    "max_receive_requests",
    "max_completions",
    "max_message_bytes",
    "max_region_bytes",
)


@dataclasses.dataclass(frozen=True)
class VerbsLimits:
    """What a device can have at most, as it said itself.

    Attributes:
        max_queue_pairs: Of the device.
        max_regions: Likewise.
        max_send_requests: Of a queue pair, in places.
        max_receive_requests: Likewise.
        max_completions: Of a completion queue.
        max_message_bytes: Of one message.
        max_region_bytes: Of one registered region.
        frame_bytes: A request takes one place for each so many bytes; 0: one place.
    """

    max_queue_pairs: int
    max_regions: int
    max_send_requests: int
    max_receive_requests: int
    max_completions: int
    max_message_bytes: int
    max_region_bytes: int
    frame_bytes: int

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Limits as the native module lists them, or as `dataclasses.asdict` gives them.

        Raises:
            KeyError, TypeError, ValueError: one is missing or no number.
        """
        return cls(**{field.name: int(value[field.name]) for field in dataclasses.fields(cls)})

    def common(self, other: Self) -> Self:
        """What both can have."""
        mine, theirs = self.bounded(), other.bounded()
        least = {name: min(value, getattr(theirs, name)) for name, value in dataclasses.asdict(mine).items()}
        return dataclasses.replace(self, **least | {"frame_bytes": max(self.frame_bytes, other.frame_bytes)})

    def bounded(self) -> Self:
        """The same where a device that has no bound did not say zero."""
        none = {name: getattr(self, name) or _NO_BOUND for name in _BOUNDS}
        return dataclasses.replace(self, **none)

    def requests(self, places: int, size_bytes: int) -> int:
        """As many requests of that size as a queue of so many places holds."""
        return (places - self._spare) // self._places(size_bytes)

    def completions(self, size_bytes: int) -> int:
        """As many requests of that size, of both directions, as the completion queue holds."""
        return max(0, self.max_completions - 2 * self._spare - 1) // self._places(size_bytes)

    @property
    def _spare(self) -> int:
        """Devices that count frames keep one place of a queue free."""
        return int(self.frame_bytes > 0)

    def _places(self, size_bytes: int) -> int:
        return max(1, -(-size_bytes // self.frame_bytes)) if self.frame_bytes else 1


def registered_bytes(
    options: LinkOptions, limits: VerbsLimits, cables: int, links_per_device: int = 1
) -> int:
    """Bytes of the region of one link.

    Args:
        options: of the link.
        limits: that hold for every cable and both ends.
        cables: of the pair.
        links_per_device: that share a device's queue pairs.

    Raises:
        LocalOptionError: not even the least fits.
    """
    limits = limits.bounded()
    queues = limits.max_queue_pairs // max(1, links_per_device)
    spare = int(cables > 1)
    sizes = [
        size_bytes
        for size_bytes in _wanted_sizes(options)
        if size_bytes <= limits.max_message_bytes
        and limits.requests(limits.max_send_requests, size_bytes) >= 1
        and limits.requests(limits.max_receive_requests, size_bytes) >= 1 + spare
        and limits.completions(size_bytes) >= 2 + spare
    ]
    if not sizes or queues == 0 or limits.max_regions == 0:
        raise LocalOptionError("no link fits these RDMA devices")
    sizes = _spread(sizes, min(queues, _MOST_QUEUES))
    buffers = options.num_buffers
    while buffers:
        total = _region_bytes(sizes, buffers, limits, cables, spare)
        if total <= limits.max_region_bytes:
            return total
        buffers //= 2
    raise LocalOptionError(
        f"one buffer of each size makes a region of more than {limits.max_region_bytes} bytes"
    )


def _wanted_sizes(options: LinkOptions) -> list[int]:
    first = -(-options.frame_bytes // _PAGE_BYTES) * _PAGE_BYTES
    sizes = [first << number for number in range(options.buffer_sizes)]
    return [_SMALL_BYTES, *sizes] if first > _SMALL_BYTES else sizes


def _spread(sizes: Sequence[int], count: int) -> list[int]:
    """So many of the sizes: the smallest, the rest spread over the others; one alone is the second."""
    if count >= len(sizes):
        return list(sizes)
    if count == 1:
        return [sizes[1]]
    others, picks = len(sizes) - 1, count - 1
    if picks == 1:
        return [sizes[0], sizes[1 + others // 2]]
    return [sizes[0], *(sizes[1 + pick * (others - 1) // (picks - 1)] for pick in range(picks))]


def _region_bytes(sizes: Sequence[int], buffers: int, limits: VerbsLimits, cables: int, spare: int) -> int:
    total = _REPORT_BUFFERS * sizes[0]
    for number, size_bytes in enumerate(sizes):
        reports = 0 if number else _REPORT_RECEIVES
        usable = buffers if number else max(buffers, _LEAST_SMALL)
        requests = min(
            usable + (0 if number else _REPORT_BUFFERS), limits.requests(limits.max_send_requests, size_bytes)
        )
        receives = min(usable + reports + spare, limits.requests(limits.max_receive_requests, size_bytes))
        most = limits.completions(size_bytes)
        if requests + receives > most:
            requests = min(requests, max(1, most // 2))
            receives = min(receives, most - requests)
        kept_back = reports + spare
        sends = min(usable, receives - kept_back if receives > kept_back else 1)
        if not number and (receives < 1 + kept_back or requests < 2):  # noqa: PLR2004  one frame and one report
            raise LocalOptionError("no link fits these RDMA devices: their queues are too short")
        total += size_bytes * (sends + receives)
    return cables * total
