"""Short measurements of fresh links, before a group takes them. Imports mlx."""

import dataclasses
import statistics
from collections.abc import Iterable

from macmesh_rdma import _group
from macmesh_rdma.errors import RemoteCorruptError, RemotePeerLostError, RemoteTimeoutError

PROBE_BYTES = 64
PROBES = 16
WARM_UP_PROBES = 4
FLOOD_BYTES = 1 << 20
FLOODS = 4
"""On a link of 1 GB/s all of this takes about 10 ms in both directions."""


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


def measure_link(link: "_group.Link", rank: int, peer: int, timeout_seconds: float) -> LinkSpeed:
    """Measures a link; the peer must do so at the same time. The lower rank begins.

    Raises:
        RemoteTimeoutError: the peer did not join in.
        RemotePeerLostError: it has gone.
        RemoteCorruptError: what it sent is no frame.
    """
    try:
        if rank < peer:
            speed = _send(link, timeout_seconds)
            _answer(link, timeout_seconds)
        else:
            _answer(link, timeout_seconds)
            speed = _send(link, timeout_seconds)
    except TimeoutError as error:
        raise RemoteTimeoutError(f"measuring the link to rank {peer}: {error}", peer=peer) from error
    except ConnectionError as error:
        raise RemotePeerLostError(f"measuring the link to rank {peer}: {error}", peer=peer) from error
    except RuntimeError as error:
        raise RemoteCorruptError(f"measuring the link to rank {peer}: {error}", peer=peer) from error
    return speed


def _send(link: "_group.Link", timeout_seconds: float) -> LinkSpeed:
    trips = _group.link_ping(link, PROBE_BYTES, WARM_UP_PROBES + PROBES, timeout_seconds)
    seconds = _group.link_flood(link, FLOOD_BYTES, FLOODS, timeout_seconds)
    return LinkSpeed(
        latency_us=statistics.median(trips[WARM_UP_PROBES:]) / 2 * 1e6,
        gb_per_s=FLOOD_BYTES * FLOODS / seconds / 1e9,
    )


def _answer(link: "_group.Link", timeout_seconds: float) -> None:
    _group.link_echo(link, PROBE_BYTES, WARM_UP_PROBES + PROBES, timeout_seconds)
    _group.link_drain(link, FLOOD_BYTES, FLOODS, timeout_seconds)
