"""The links of connected peers as the native module has them: made, measured, reported. Imports mlx."""

import dataclasses
import os
import time

import mlx.core  # noqa: F401  before the native module

from macmesh_rdma import _group
from macmesh_rdma.errors import LocalProviderError
from macmesh_rdma.joining.joining_peer import close_all
from macmesh_rdma.joining.peer_links import PeerLinks, ShmLane, VerbsLane
from macmesh_rdma.measure import LinkSpeed, measure_link, pairs_in_order
from macmesh_rdma.options import LinkOptions, Provider
from macmesh_rdma.verbs.opening import VerbsOpener

POINT_TO_POINT, COLLECTIVE = 0, 1
"""The lanes of a group."""

NativeLanes = dict[int, list["_group.Link"]]
"""A peer's links by lane."""


@dataclasses.dataclass(frozen=True)
class LinkReport:
    """One peer's links, for people.

    Attributes:
        peer: Its rank.
        provider: What carries them.
        reason: Why that one.
        pool_bytes: Bytes of their buffers on this side.
        latency_us: Half a round trip of a small message in microseconds; None where it was not measured.
        gb_per_s: 10^9 bytes per second to the peer; None where it was not measured.
        devices: RDMA devices of this side, one for each cable.
    """

    peer: int
    provider: Provider
    reason: str
    pool_bytes: int
    latency_us: float | None = None
    gb_per_s: float | None = None
    devices: tuple[str, ...] = ()


def native_options(options: LinkOptions) -> "_group.LinkOptions":
    """The options as the native links take them."""
    return _group.LinkOptions(
        num_buffers=options.num_buffers,
        frame_bytes=options.frame_bytes,
        buffer_sizes=options.buffer_sizes,
        max_outstanding=options.max_outstanding,
        spin_us=options.spin_us,
    )


def native_links(links: PeerLinks, options: LinkOptions, verbs: VerbsOpener | None = None) -> NativeLanes:
    """Native links of one peer; they take over the descriptors, also where this raises.

    Where they go over RDMA devices, the peer must be making them at the same time.

    Raises:
        LocalProviderError: they go over RDMA devices, and one of ours cannot be used.
        RemoteProviderError: a cable damages what it carries, or carries nothing.
        RemotePeerLostError: the peer has gone.
        OSError: a descriptor is not what it should be.
    """
    native = native_options(options)
    made: NativeLanes = {}
    for lane in sorted(links.lanes):
        given = links.lanes.pop(lane)
        if isinstance(given, ShmLane):
            made[lane] = [
                _group.shm_link(
                    given.send_memory,
                    given.receive_memory,
                    given.send_doorbell,
                    given.receive_doorbell,
                    native,
                )
            ]
        elif isinstance(given, VerbsLane):
            if verbs is None:
                close_all(given.descriptors())
                raise LocalProviderError("links over RDMA devices need to know the devices", peer=links.peer)
            made[lane] = [verbs.open(given, links.peer, native)]
        else:
            made[lane] = []
            try:
                while given.sockets:
                    made[lane].append(_group.tcp_link(given.sockets.pop(0), native))
            finally:
                for descriptor in given.sockets:
                    os.close(descriptor)
    return made


def measure_links(
    rank: int, lanes: dict[int, NativeLanes], options: LinkOptions, deadline: float
) -> dict[int, LinkSpeed]:
    """The speed of the first link to each peer; every rank must call it at about the same time.

    Args:
        rank: ours.
        lanes: native links by peer and lane.
        options: of the links.
        deadline: time of `time.monotonic`.

    Raises:
        TransportError: see `measure.measure_link`.
    """
    speeds = {}
    for peer in pairs_in_order(rank, lanes):
        first = lanes[peer][min(lanes[peer])][0]
        left = max(deadline - time.monotonic(), 0.1)
        speeds[peer] = measure_link(first, rank, peer, options, left)
    return speeds


def report(
    links: PeerLinks,
    native: NativeLanes,
    speed: LinkSpeed | None,
    note: str,
    devices: tuple[str, ...] = (),
) -> LinkReport:
    """What there is to say of a peer's links."""
    return LinkReport(
        peer=links.peer,
        provider=links.provider,
        reason=links.reason + note,
        pool_bytes=sum(link.pool_bytes for by_lane in native.values() for link in by_lane),
        latency_us=speed.latency_us if speed is not None else None,
        gb_per_s=speed.gb_per_s if speed is not None else None,
        devices=devices,
    )
