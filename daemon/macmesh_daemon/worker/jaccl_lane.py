"""The stages' tensor lane over RDMA over Thunderbolt, as a plan's device matrix says. Imports mlx."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_rdma.jaccl.device_matrix import DeviceMatrix
from macmesh_rdma.jaccl.exchange import Exchange
from macmesh_rdma.jaccl.lane import open_jaccl_lane

if TYPE_CHECKING:
    from macmesh_rdma.jaccl.group import Init
    from macmesh_rdma.stock_lane import StockLane

SET_UP_DEADLINE_SECONDS = 8.0
"""For the set-up, and again for the self-test: both fit into the coordinator's patience with stages that connect."""


def open_stages_jaccl(
    start: lane_pb2.StartStage,
    exchange: Exchange,
    *,
    on_stall: Callable[[str], None],
    init: "Init | None" = None,
) -> "StockLane":
    """Joins the group of a plan's stages.

    Args:
        start: the plan and our stage.
        exchange: to the other stages.
        on_stall: called from another thread where a wait passes its deadline; must end the process.
        init: instead of MLX's own.

    Raises:
        TransportError: see `macmesh_rdma.jaccl.group.open_jaccl`.
    """
    return open_jaccl_lane(
        start.stage_index,
        matrix_of(start),
        exchange,
        timeout_seconds=SET_UP_DEADLINE_SECONDS,
        on_stall=on_stall,
        init=init,
    )


def matrix_of(start: lane_pb2.StartStage) -> DeviceMatrix:
    """The plan's device matrix."""
    told = start.deployment.device_matrix
    return DeviceMatrix(
        tuple(tuple(tuple(cell.devices) for cell in row.cells) for row in told.rows), ring=told.ring
    )


def jaccl_statuses(start: lane_pb2.StartStage) -> list[peer_pb2.LinkStatus]:
    """What the worker reports of its connections. The backend measures nothing and does not tell its buffers."""
    own = matrix_of(start).devices[start.stage_index]
    return [
        peer_pb2.LinkStatus(
            peer_stage=stage, provider="jaccl", reason=start.deployment.transport_reason, devices=devices
        )
        for stage, devices in enumerate(own)
        if devices
    ]
