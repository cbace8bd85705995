"""Short measurements of fresh links, before a group takes them. Imports mlx."""

import dataclasses
import statistics
from collections.abc import Iterable

from macmesh_rdma import _group
from macmesh_rdma.errors import RemoteCorruptError, RemotePeerLostError, RemoteTimeoutError
from macmesh_rdma.options import LinkOptions

PROBE_BYTES = 64
PROBES = 16
WARM_UP_PROBES = 4
MOST_FLOOD_BYTES = 1 << 20
FRAMES_PER_FLOOD = 8
FLOODS = 4
"""On a link of 1 GB/s all of this takes about 10 ms in both directions."""


def flood_bytes(options: LinkOptions) -> int:
    """Bytes of a large message; the same on both sides, as their options are.

    No more than some frames: where others keep the processors busy, each frame that finds the buffers full costs
    two changes of process, some 10 ms. A megabyte through buffers of a few kilobytes then took 20 s.
    """
    largest_buffer_bytes = options.frame_bytes << (options.buffer_sizes - 1)
    return min(MOST_FLOOD_BYTES, FRAMES_PER_FLOOD * largest_buffer_bytes)


@dataclasses.dataclass(frozen=True)
class LinkSpeed:
    """What one direction of a link does.

    Attributes:
        latency_us: Half the median round trip of a small message, in microseconds.
        gb_per_s: 10^9 bytes per second of large messages, from us to the peer.
    """

    latency_us: float
    gb_per_s: float


def pairs_in_order(rank: int, peers: Iterable[int]) -> list[int]:
    """The peers of a rank in the order in which it measures with them.

    All ranks follow one order of all pairs, so that nobody waits in a circle.
    """
    return sorted(peers, key=lambda peer: (min(rank, peer), max(rank, peer)))


def measure_link(
    link: "_group.Link", rank: int, peer: int, options: LinkOptions, timeout_seconds: float
) -> LinkSpeed:
    """Measures a link; the peer must do so at the same time, with the same options. The lower rank begins.

    Raises:
        RemoteTimeoutError: the peer did not join in.
        RemotePeerLostError: it has gone.
        RemoteCorruptError: what it sent is no frame.
    """
    size_bytes = flood_bytes(options)
    try:
        if rank < peer:
            speed = _send(link, size_bytes, timeout_seconds)
            _answer(link, size_bytes, timeout_seconds)
        else:
            _answer(link, size_bytes, timeout_seconds)
            speed = _send(link, size_bytes, timeout_seconds)
    except TimeoutError as error:
        raise RemoteTimeoutError(f"measuring the link to rank {peer}: {error}", peer=peer) from error
    except ConnectionError as error:
        raise RemotePeerLostError(f"measuring the link to rank {peer}: {error}", peer=peer) from error
    except RuntimeError as error:
        raise RemoteCorruptError(f"measuring the link to rank {peer}: {error}", peer=peer) from error
    return speed


def _send(link: "_group.Link", size_bytes: int, timeout_seconds: float) -> LinkSpeed:
    trips = _group.link_ping(link, PROBE_BYTES, WARM_UP_PROBES + PROBES, timeout_seconds)
    seconds = _group.link_flood(link, size_bytes, FLOODS, timeout_seconds)
    return LinkSpeed(
        latency_us=statistics.median(trips[WARM_UP_PROBES:]) / 2 * 1e6,
        gb_per_s=size_bytes * FLOODS / seconds / 1e9,
    )


def _answer(link: "_group.Link", size_bytes: int, timeout_seconds: float) -> None:
    _group.link_echo(link, PROBE_BYTES, WARM_UP_PROBES + PROBES, timeout_seconds)
    _group.link_drain(link, size_bytes, FLOODS, timeout_seconds)
