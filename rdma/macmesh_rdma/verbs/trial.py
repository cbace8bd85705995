"""Tests a group's links over RDMA devices before they are used, and measures TCP beside them. Imports mlx.

Every rank must call each function at about the same time: all follow one order of pairs.
"""

import contextlib
import hashlib
import time
from collections.abc import Collection, Iterator, Mapping

from macmesh_rdma import _group
from macmesh_rdma.errors import (
    LocalProviderError,
    LocalResourceError,
    RemoteCorruptError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteProviderError,
)
from macmesh_rdma.group_check import check_sums
from macmesh_rdma.joining.peer_links import PeerLinks, VerbsLane
from macmesh_rdma.measure import LinkSpeed, flood_bytes, measure_link, pairs_in_order
from macmesh_rdma.native_links import COLLECTIVE, POINT_TO_POINT, native_options
from macmesh_rdma.options import LinkOptions
from macmesh_rdma.verbs.opening import SILENT

REDUCE_ELEMENTS = (1, 1_000, 9_000)


@contextlib.contextmanager
def faults_of(provider: str) -> Iterator[None]:
    """Puts damage and silence in a test of fresh links over RDMA devices down to the provider.

    A test that only takes too long tells nothing of the devices: the machine may be busy.

    Raises:
        RemoteProviderError: the links damaged what they carried, or carried nothing though the peer answered.
    """
    try:
        yield
    except (RemoteCorruptError, RemoteMismatchError, RemotePeerLostError) as error:
        if provider != "verbs" or (isinstance(error, RemotePeerLostError) and SILENT not in str(error)):
            raise
        raise RemoteProviderError(f"over RDMA devices: {error}", peer=error.peer) from error


def measure_tcp_beside(
    rank: int, connected: Mapping[int, PeerLinks], options: LinkOptions, deadline: float
) -> dict[int, LinkSpeed]:
    """The speed of TCP to each peer that has a socket for it; takes those sockets over.

    Raises:
        LocalResourceError: a socket cannot be used.
        TransportError: see `measure.measure_link`.
    """
    speeds = {}
    for peer in pairs_in_order(rank, connected):
        for lane in connected[peer].lanes.values():
            if isinstance(lane, VerbsLane) and lane.beside:
                try:
                    link = _group.tcp_link(lane.beside.pop(), native_options(options))
                except OSError as error:
                    raise LocalResourceError(f"measuring TCP to rank {peer}: {error}", peer=peer) from error
                speeds[peer] = measure_link(link, rank, peer, options, _left(deadline))
    return speeds


def compare(peer: int, speeds: Mapping[int, LinkSpeed], tcp: Mapping[int, LinkSpeed]) -> str:
    """What to tell of TCP beside a link; empty where it was not measured.

    Raises:
        LocalProviderError: TCP is better in both respects.
    """
    own, other = speeds.get(peer), tcp.get(peer)
    if own is None or other is None:
        return ""
    told = f"TCP beside it: {other.latency_us:.0f} us {other.gb_per_s:.1f} GB/s"
    if other.latency_us < own.latency_us and other.gb_per_s > own.gb_per_s:
        raise LocalProviderError(
            f"the link over RDMA devices to rank {peer} is slower than TCP: {own.latency_us:.0f} us "
            f"{own.gb_per_s:.1f} GB/s; {told}",
            peer=peer,
        )
    return f"; {told}"


def check_links(
    group: "_group.MeshGroup",
    lanes: Collection[int],
    peers: Collection[int],
    options: LinkOptions,
    deadline: float,
) -> None:
    """Sends patterns of several sizes to and fro between this rank and each of its peers, and sums over all ranks.

    Args:
        group: over the links, fresh.
        lanes: of the links: 0 point to point, 1 collectives.
        peers: ranks to which there are links.
        options: of the links.
        deadline: time of `time.monotonic`.

    Raises:
        RemoteProviderError: something arrived changed.
        RuntimeError: the group ended; it tells why.
    """
    before = group.timeout_seconds
    if POINT_TO_POINT in lanes:
        for peer in pairs_in_order(group.rank, peers):
            group.timeout_seconds = _left(deadline)
            _check_messages(group, peer, options)
    if COLLECTIVE in lanes and group.size > 1:
        group.timeout_seconds = _left(deadline)
        try:
            check_sums(group.mlx, REDUCE_ELEMENTS)
        except RemoteMismatchError as error:
            raise RemoteProviderError(f"over RDMA devices: {error}") from error
    group.timeout_seconds = before


def pattern(source: int, size_bytes: int) -> bytes:
    """Bytes of which no part equals another, and that tell who sent them."""
    return hashlib.shake_128(f"{source} {size_bytes}".encode()).digest(size_bytes)


def _check_messages(group: "_group.MeshGroup", peer: int, options: LinkOptions) -> None:
    for size_bytes in (1, options.frame_bytes - 1, options.frame_bytes + 1, flood_bytes(options)):
        if group.rank < peer:
            group.send_bytes(peer, pattern(group.rank, size_bytes))
            _receive(group, peer, size_bytes)
        else:
            _receive(group, peer, size_bytes)
            group.send_bytes(peer, pattern(group.rank, size_bytes))


def _receive(group: "_group.MeshGroup", peer: int, size_bytes: int) -> None:
    into = bytearray(size_bytes)
    group.receive_bytes(peer, into)
    if into != pattern(peer, size_bytes):
        raise RemoteProviderError(
            f"a pattern of {size_bytes} bytes from rank {peer} arrived changed over RDMA devices", peer=peer
        )


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.1)
