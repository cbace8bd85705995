"""The stages' tensor lane: a group of MLX over links of our own. Imports mlx."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from macmesh.v1 import lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.worker.checks import VERBS
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.native import load_group
from macmesh_rdma.options import LinkOptions
from macmesh_rdma.verbs.settings import VerbsSettings

if TYPE_CHECKING:
    from macmesh_daemon.worker.checks import Transport
    from macmesh_daemon.worker.runner import Stage
    from macmesh_rdma.graph_lane import GraphLane

load_group()  # refuses an MLX that it was not built for, before anything else touches it

import mlx.core as mx  # noqa: E402  after the check

from macmesh_daemon.engine.limits import Limits  # noqa: E402  same
from macmesh_daemon.worker.graph_runner import sampled_facts  # noqa: E402  same
from macmesh_daemon.worker.graph_transfers import GraphTransfers  # noqa: E402  same
from macmesh_daemon.worker.transfer_choice import (  # noqa: E402  same
    Backend,
    Offer,
    TransferChoice,
    choose_transfers,
    exchange_offers,
)
from macmesh_daemon.worker.transfers import HostTransfers, dtype_of  # noqa: E402  same
from macmesh_rdma.cuda_runtime import runtime_problem  # noqa: E402  same
from macmesh_rdma.cuda_set_up import open_cuda_graph_lane  # noqa: E402  same
from macmesh_rdma.graph_memory import layout_of  # noqa: E402  same
from macmesh_rdma.group import Group, open_group  # noqa: E402  same
from macmesh_rdma.group_graph_lane import GroupGraphLane  # noqa: E402  same
from macmesh_rdma.group_host_lane import GroupHostLane  # noqa: E402  same
from macmesh_rdma.native_links import LinkReport  # noqa: E402  same

METAL_WAIT_SECONDS = 4.0
"""macOS stops a GPU that waits for about 5 s."""
BATCH_ROWS: int = Limits.batch_rows
"""Most rows of a decode step."""


def open_stages_group(
    start: lane_pb2.StartStage,
    listener: Listener,
    endpoints: Sequence[Endpoint],
    key: bytes,
    timeout_seconds: float,
) -> Group:
    """Joins the pipeline of a plan's stages, and stops listening.

    Args:
        start: the plan and our stage.
        listener: ours, as told to the others.
        endpoints: of every stage, head first.
        key: of the epoch.
        timeout_seconds: for connecting and measuring.

    Raises:
        TransportError: see `macmesh_rdma.group.open_group`.
    """
    deployment, epoch = start.deployment, start.epoch
    group = open_group(
        listener,
        start.stage_index,
        endpoints,
        key=key,
        epoch=(epoch.generation, epoch.term, epoch.seq),
        name="stages",
        topology="pipeline",
        options=link_options(deployment),
        provider=cast("Transport", deployment.transport),
        timeout_seconds=start.step_deadline_seconds,
        connect_seconds=timeout_seconds,
        verbs=verbs_settings(start),
    )
    # One group in an epoch; a killed worker would leave its socket's folder behind.
    listener.close()
    return group


def stage_transfers(
    start: lane_pb2.StartStage,
    group: Group,
    stage: "Stage",
    result: Callable[[lane_pb2.StepDone], None],
    timeout_seconds: float,
) -> tuple[HostTransfers, TransferChoice]:
    """The way of arrays and results over a group, as all stages agree on it, and why it is that one.

    Args:
        start: the plan and our stage.
        group: of all stages.
        stage: ours, loaded.
        result: tells the head over the control lane that a step is done.
        timeout_seconds: for agreeing, with each neighbour.

    Raises:
        LocalStartError: what was asked for cannot be.
        RemoteNeighbourError: a neighbour told nothing sensible.
        TransportError: one is lost or silent.
    """
    index, stages = start.stage_index, len(start.deployment.stages)
    host = GroupHostLane(group)
    own = offer_of(start, stage, backend())
    offers = exchange_offers(host, own, stages, timeout_seconds)
    choice = choose_transfers(offers)
    if choice.kind == "host":
        return HostTransfers(host, index, stages, start.step_deadline_seconds), choice
    if choice.kind == "cuda":
        graph: GraphLane = open_cuda_graph_lane(
            host,
            index,
            stages,
            payload_bytes=own.payload_bytes,
            buffers=most_steps_queued(stages),
            receive_seconds=start.step_deadline_seconds,
            set_up_seconds=timeout_seconds,
            failure=lambda: group.failure,
        )
    else:
        graph = GroupGraphLane(
            group, receive_seconds=receive_seconds(start.step_deadline_seconds, own.backend)
        )
    transfers = GraphTransfers(
        host,
        graph,
        result=result,
        stage=index,
        stages=stages,
        deadline_seconds=start.step_deadline_seconds,
    )
    return transfers, choice


def most_steps_queued(stages: int) -> int:
    """Decode steps that may be on their way, and one more; the schedule gives out no more of them."""
    return 2 * stages + 2


def backend() -> Backend:
    """What MLX computes on here."""
    if mx.metal.is_available() and mx.default_device() == mx.Device(mx.gpu):
        return "metal"
    return "cuda" if mx.default_device() == mx.Device(mx.gpu) else "cpu"


def offer_of(start: lane_pb2.StartStage, stage: "Stage", computes_on: Backend) -> Offer:
    """What our stage can do."""
    incoming = [sampled_facts(BATCH_ROWS)]
    if not stage.is_head:
        facts = stage.payload_facts(BATCH_ROWS, 1)
        incoming = [(tuple(fact.shape), dtype_of(fact.dtype)) for fact in facts or ()]
    sizes = [math.prod(shape) * dtype.size for shape, dtype in incoming]
    return Offer(
        stage=start.stage_index,
        asked=start.deployment.transfers or "auto",
        backend=computes_on,
        host_id=start.host_id,
        payload_bytes=layout_of(sizes).size_bytes,
        refusal=runtime_problem() if computes_on == "cuda" else "",
    )


def receive_seconds(step_deadline_seconds: float, computes_on: str) -> float:
    """Deadline of a receive that the device may wait for."""
    return min(step_deadline_seconds, METAL_WAIT_SECONDS) if computes_on == "metal" else step_deadline_seconds


def link_options(deployment: types_pb2.Deployment) -> LinkOptions:
    """The links' options of a plan.

    Raises:
        LocalOptionError: they cannot be.
    """
    if not deployment.HasField("link_buffers"):
        return LinkOptions()
    buffers = deployment.link_buffers
    options = LinkOptions(
        num_buffers=buffers.num_buffers,
        frame_bytes=buffers.frame_bytes,
        buffer_sizes=buffers.buffer_sizes,
    )
    if not buffers.max_outstanding:
        return options
    return dataclasses.replace(
        options,
        max_outstanding=buffers.max_outstanding,
        spin_us=buffers.spin_us,
        sockets_per_link=buffers.sockets,
        checksum_payloads=buffers.checksum_payloads,
    )


def verbs_settings(start: lane_pb2.StartStage) -> VerbsSettings | None:
    """The RDMA devices towards each stage, where the plan's links go over them; None otherwise."""
    deployment = start.deployment
    if deployment.transport != VERBS:
        return None
    rows = [[tuple(cell.devices) for cell in row.cells] for row in deployment.device_matrix.rows]
    # Both ends of a link must know the same number.
    shared = [collections.Counter(itertools.chain.from_iterable(row)) for row in rows]
    return VerbsSettings(
        devices={peer: devices for peer, devices in enumerate(rows[start.stage_index]) if devices},
        peers_per_device=max(max(counted.values(), default=1) for counted in shared),
        library=start.verbs_library,
        os_build=start.os_build,
        beside=deployment.transport_compared,
    )


def link_statuses(group: Group) -> list[peer_pb2.LinkStatus]:
    """The group's links as the worker reports them."""
    return statuses_of(group.links)


def statuses_of(links: Sequence[LinkReport]) -> list[peer_pb2.LinkStatus]:
    """A group's links as the worker reports them."""
    return [
        peer_pb2.LinkStatus(
            peer_stage=link.peer,
            provider=link.provider,
            reason=link.reason,
            latency_us=link.latency_us or 0.0,
            gb_per_s=link.gb_per_s or 0.0,
            pool_bytes=link.pool_bytes,
            devices=link.devices,
        )
        for link in links
    ]
