"""The stages' tensor lane: a group of MLX over links of our own. Imports mlx."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from macmesh.v1 import lane_pb2, peer_pb2, types_pb2
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.native import load_group
from macmesh_rdma.options import LinkOptions

if TYPE_CHECKING:
    from macmesh_daemon.worker.checks import Transport

load_group()  # refuses an MLX that it was not built for, before anything else touches it

from macmesh_daemon.worker.transfers import HostTransfers  # noqa: E402  after the check
from macmesh_rdma.group import open_group  # noqa: E402  same
from macmesh_rdma.group_host_lane import GroupHostLane  # noqa: E402  same
from macmesh_rdma.group_lane import GroupLane  # noqa: E402  same


def open_tensor_lane(
    start: lane_pb2.StartStage,
    listener: Listener,
    endpoints: Sequence[Endpoint],
    key: bytes,
    timeout_seconds: float,
) -> GroupLane:
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
    )
    # One group in an epoch; a killed worker would leave its socket's folder behind.
    listener.close()
    return GroupLane(group)


def host_transfers(start: lane_pb2.StartStage, lane: GroupLane) -> HostTransfers:
    """The way of arrays and results over the lane's group, moved by the host."""
    return HostTransfers(
        GroupHostLane(lane.group),
        start.stage_index,
        len(start.deployment.stages),
        start.step_deadline_seconds,
    )


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


def link_statuses(lane: GroupLane) -> list[peer_pb2.LinkStatus]:
    """The lane's links as the worker reports them."""
    return [
        peer_pb2.LinkStatus(
            peer_stage=link.peer,
            provider=link.provider,
            reason=link.reason,
            latency_us=link.latency_us or 0.0,
            gb_per_s=link.gb_per_s or 0.0,
            pool_bytes=link.pool_bytes,
        )
        for link in lane.group.links
    ]
