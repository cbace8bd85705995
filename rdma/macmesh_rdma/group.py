"""Groups of MLX over our own links: opened, measured, failed with our errors, closed and opened again. Imports mlx."""

import dataclasses
import itertools
import threading
import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import NoReturn, Self, Union

import mlx.core as mx

from macmesh_rdma import _group
from macmesh_rdma.errors import (
    LocalLaneStateError,
    LocalResourceError,
    RemoteAbortedError,
    RemoteCorruptError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.joining.bringup import connect_peers
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.introduction import EpochNumbers
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.joining.plan import ProviderChoice, Topology, neighbours
from macmesh_rdma.measure import pairs_in_order
from macmesh_rdma.native_links import (
    COLLECTIVE,
    POINT_TO_POINT,
    LinkReport,
    NativeLanes,
    measure_links,
    native_links,
    report,
)
from macmesh_rdma.options import LinkOptions
from macmesh_rdma.verbs.opening import VerbsOpener
from macmesh_rdma.verbs.settings import VerbsSettings
from macmesh_rdma.verbs.trial import check_links, compare, faults_of, measure_tcp_beside

_GAVE_UP = "gave up: "

_Given = Union["_group.Link", Sequence["_group.Link"], None]
_Peers = dict[int, tuple[_Given, _Given, int]]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a group and the groups split off it have in common."""

    key: bytes
    epoch: EpochNumbers
    options: LinkOptions
    provider: ProviderChoice
    connect_seconds: float
    measure: bool
    stop: threading.Event | None
    verbs: VerbsSettings | None


class Group:
    """A group of ranks; made by `open_group`.

    The first failure ends it for ever: every wait in it ends, every later operation fails at once, and the peers
    learn why. Close it then, and open another.
    """

    def __init__(
        self, native: "_group.MeshGroup", links: tuple[LinkReport, ...], epoch: EpochNumbers
    ) -> None:
        self.native = native
        """The group as the native module has it."""
        self.links = links
        """The links to each peer."""
        self.epoch = epoch
        """Generation, term and sequence of the plan."""
        self.splits: list[Group] = []
        """The groups split off this one; closed with it."""

    @property
    def mlx(self) -> mx.distributed.Group:
        """For `mlx.core.distributed` and all that takes a group."""
        return self.native.mlx

    @property
    def rank(self) -> int:
        """Ours."""
        return self.native.rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.native.size

    @property
    def pool_bytes(self) -> int:
        """Bytes of all buffers on this side, those of collectives included."""
        return self.native.pool_bytes

    @property
    def timeout_seconds(self) -> float:
        """Deadline of every operation that begins from now on."""
        return self.native.timeout_seconds

    @timeout_seconds.setter
    def timeout_seconds(self, seconds: float) -> None:
        self.native.timeout_seconds = seconds

    @property
    def receive_timeout_seconds(self) -> float:
        """Deadline of every receive from point to point that begins from now on; the group's until it is set."""
        return self.native.receive_timeout_seconds

    @receive_timeout_seconds.setter
    def receive_timeout_seconds(self, seconds: float) -> None:
        self.native.receive_timeout_seconds = seconds

    @property
    def failure(self) -> TransportError | None:
        """What ended the group; None while nothing has."""
        told = self.native.failure
        if told is None:
            return None
        code, text, blamed = told
        kind: type[TransportError]
        match code:
            case "peer_lost":
                kind = RemoteAbortedError if _GAVE_UP in text else RemotePeerLostError
            case "timeout":
                kind = RemoteTimeoutError
            case "mismatch":
                kind = RemoteMismatchError
            case "corrupt":
                kind = RemoteCorruptError
            case _:
                kind = LocalLaneStateError
        return kind(text, peer=blamed if blamed >= 0 else None, epoch=".".join(map(str, self.epoch)))

    def raise_failure(self, error: RuntimeError) -> NoReturn:
        """Raises what ended the group, in place of the RuntimeError that MLX made of it.

        Raises:
            RemotePeerLostError: a peer has gone, or gave up (then RemoteAbortedError).
            RemoteTimeoutError: a peer was silent.
            RemoteMismatchError: two ranks did not do the same.
            RemoteCorruptError: what came is no frame.
            LocalLaneStateError: the group was ended here, or the operation was refused.
        """
        failure = self.failure
        if failure is None:
            raise LocalLaneStateError(str(error), epoch=".".join(map(str, self.epoch))) from error
        # The error's own text says which operation it was.
        raise type(failure)(str(error), peer=failure.peer, epoch=failure.epoch) from error

    def abort(self, reason: str) -> None:
        """Ends the group and every wait in it, and tells the peers why. From any thread."""
        self.native.abort(reason)

    def close(self) -> None:
        """Says goodbye and gives everything up; harmless when repeated."""
        for split in self.splits:
            split.close()
        self.native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_group(
    listener: Listener,
    rank: int,
    endpoints: Sequence[Endpoint],
    *,
    key: bytes,
    epoch: EpochNumbers,
    name: str = "ranks",
    topology: Topology = "mesh",
    lanes: Collection[int] | None = None,
    options: LinkOptions | None = None,
    most_pool_bytes: int | None = None,
    provider: ProviderChoice = "auto",
    timeout_seconds: float = 4.0,
    connect_seconds: float = 10.0,
    measure: bool = True,
    stop: threading.Event | None = None,
    verbs: VerbsSettings | None = None,
) -> Group:
    """Connects the ranks and makes a group of them; every rank must call it at about the same time.

    A process may open any number of groups one after the other, with other ranks, sizes and epochs.

    Args:
        listener: our own; its endpoint is ``endpoints[rank]``.
        rank: ours.
        endpoints: of every rank.
        key: of the epoch; at least 16 bytes.
        epoch: of the plan.
        name: of the group; groups of one epoch need different ones.
        topology: "mesh" (every pair) or "pipeline" (neighbours, and tail to head).
        lanes: links of each pair; by default 0 (point to point), and in a mesh 1 (collectives) too.
        options: of the links; all ranks must have the same.
        most_pool_bytes: shrinks ``num_buffers`` until the links of any rank fit, and says so in the reports; all
            ranks must have the same.
        provider: what carries the links.
        timeout_seconds: deadline of every operation.
        connect_seconds: deadline of making the group.
        measure: whether each link's latency and bandwidth are measured first, which takes some milliseconds each.
        stop: ends the making of the group when set.
        verbs: the RDMA devices towards each peer, where the provider is "verbs". Such links are tested first.

    Raises:
        TransportError: see `joining.bringup.connect_peers`, `measure.measure_link` and `verbs.opening`; nothing is left
            behind.
    """
    options = options or LinkOptions()
    lanes = tuple(lanes) if lanes is not None else ((0, 1) if topology == "mesh" else (0,))
    note = ""
    if most_pool_bytes is not None:
        most_links = max(
            (len(neighbours(r, len(endpoints), topology)) for r in range(len(endpoints))), default=0
        ) * len(lanes)
        wanted = options.num_buffers
        if most_links:
            options = options.fitted("shm" if provider == "auto" else provider, most_links, most_pool_bytes)
        if options.num_buffers != wanted:
            note = f"; {options.num_buffers} of {wanted} buffers, to fit {most_pool_bytes} bytes"
    settings = _Settings(key, epoch, options, provider, connect_seconds, measure, stop, verbs)
    return _open(listener, rank, tuple(endpoints), settings, name, topology, lanes, timeout_seconds, note)


def _open(
    listener: Listener,
    rank: int,
    endpoints: tuple[Endpoint, ...],
    settings: _Settings,
    name: str,
    topology: Topology,
    lanes: tuple[int, ...],
    timeout_seconds: float,
    note: str,
) -> Group:
    deadline = time.monotonic() + settings.connect_seconds
    connected = connect_peers(
        listener,
        rank,
        endpoints,
        key=settings.key,
        epoch=settings.epoch,
        name=name,
        topology=topology,
        lanes=lanes,
        options=settings.options,
        provider=settings.provider,
        beside=settings.measure and settings.verbs is not None and settings.verbs.beside,
        timeout_seconds=settings.connect_seconds,
        stop=settings.stop,
    )
    numbers = itertools.count()
    group: Group

    def split(colour: int, ranks: Sequence[int]) -> "_group.MeshGroup":
        verbs = settings.verbs.of(ranks) if settings.verbs is not None else None
        part = _open(
            listener,
            list(ranks).index(rank),
            tuple(endpoints[r] for r in ranks),
            dataclasses.replace(settings, verbs=verbs),
            f"{name}/{next(numbers)}.{colour}",
            "mesh",
            (POINT_TO_POINT, COLLECTIVE),
            group.timeout_seconds,
            note,
        )
        group.splits.append(part)
        return part.native

    native_lanes: dict[int, NativeLanes] = {}
    try:
        tcp = measure_tcp_beside(rank, connected, settings.options, deadline)
        opener = VerbsOpener(settings.verbs, len(lanes), deadline) if settings.verbs is not None else None
        # All ranks follow one order of all pairs: both ends of a link over RDMA devices make it at the same time.
        for peer in pairs_in_order(rank, connected):
            native_lanes[peer] = native_links(connected[peer], settings.options, opener)
        with faults_of(settings.provider):
            speeds = measure_links(rank, native_lanes, settings.options, deadline) if settings.measure else {}
        reports = tuple(
            report(
                links,
                native_lanes[peer],
                speeds.get(peer),
                note + compare(peer, speeds, tcp),
                settings.verbs.devices.get(peer, ()) if settings.verbs is not None else (),
            )
            for peer, links in connected.items()
        )
        peers: _Peers = {
            peer: (by_lane.get(POINT_TO_POINT), by_lane.get(COLLECTIVE), connected[peer].side)
            for peer, by_lane in native_lanes.items()
        }
        for links in connected.values():
            links.side = -1  # the group takes them over, also where it raises
        native = _group.MeshGroup(
            rank=rank,
            size=len(endpoints),
            peers=peers,
            epoch=settings.epoch,
            name=name,
            timeout_seconds=timeout_seconds,
            spin_us=settings.options.spin_us,
            checksum_payloads=settings.options.checksum_payloads,
            split=split if COLLECTIVE in lanes else None,
        )
    except OSError as error:
        if isinstance(error, TransportError):
            raise
        raise LocalResourceError(f"group {name!r} cannot be made: {error}") from error
    finally:
        # Links that no group has taken over end with their last reference.
        native_lanes.clear()
        for links in connected.values():
            links.close()
    group = Group(native, reports, settings.epoch)
    if settings.provider == "verbs":
        _test(group, lanes, connected, settings, deadline)
    return group


def _test(
    group: Group, lanes: Collection[int], peers: Collection[int], settings: _Settings, deadline: float
) -> None:
    """Tests the links of a fresh group, and closes it where it does not pass."""
    try:
        with faults_of(settings.provider):
            try:
                check_links(group.native, lanes, peers, settings.options, deadline)
            except RuntimeError as error:
                group.raise_failure(error)
    except BaseException:
        group.close()
        raise
