"""The group of a tensor-parallel plan's ranks: every rank is joined to every other one. Imports mlx."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_rdma.jaccl.exchange import Exchange
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.native import load_group

if TYPE_CHECKING:
    from macmesh_daemon.worker.checks import Transport
    from macmesh_rdma.jaccl.group import Init

load_group()  # refuses an MLX that it was not built for, before anything else touches it

from macmesh_daemon.worker.collectives import StockCollectives  # noqa: E402  after the check
from macmesh_daemon.worker.jaccl_lane import SET_UP_DEADLINE_SECONDS, matrix_of  # noqa: E402  same
from macmesh_daemon.worker.tensor_lane import link_options, statuses_of, verbs_settings  # noqa: E402  same
from macmesh_rdma.group import Group, open_group  # noqa: E402  same
from macmesh_rdma.jaccl.group import open_jaccl  # noqa: E402  same
from macmesh_rdma.native_links import COLLECTIVE  # noqa: E402  same
from macmesh_rdma.stall import StallWatch  # noqa: E402  same


def open_tensor_group(
    start: lane_pb2.StartStage,
    listener: Listener,
    endpoints: Sequence[Endpoint],
    key: bytes,
    timeout_seconds: float,
) -> tuple[Group, list[peer_pb2.LinkStatus]]:
    """Joins the ranks of a plan over links of our own, and stops listening.

    Args:
        start: the plan and our rank.
        listener: ours, as told to the others.
        endpoints: of every rank.
        key: of the epoch.
        timeout_seconds: for connecting and measuring.

    Returns:
        The group, every operation of which has the step's deadline, and what to report of its links.

    Raises:
        TransportError: see `macmesh_rdma.group.open_group`.
    """
    deployment, epoch = start.deployment, start.epoch
    group: Group = open_group(
        listener,
        start.stage_index,
        endpoints,
        key=key,
        epoch=(epoch.generation, epoch.term, epoch.seq),
        name="ranks",
        topology="mesh",
        lanes=(COLLECTIVE,),
        options=link_options(deployment),
        provider=cast("Transport", deployment.transport),
        timeout_seconds=start.step_deadline_seconds,
        connect_seconds=timeout_seconds,
        verbs=verbs_settings(start),
    )
    # One group in the life of a worker; a killed worker would leave its socket's folder behind.
    listener.close()
    return group, statuses_of(group.links)


def open_tensor_jaccl(
    start: lane_pb2.StartStage,
    exchange: Exchange,
    *,
    on_stall: Callable[[str], None],
    init: "Init | None" = None,
) -> StockCollectives:
    """The same over RDMA over Thunderbolt, as the plan's device matrix says.

    Args:
        start: the plan and our rank.
        exchange: to the other ranks.
        on_stall: called from another thread where a wait passes its deadline; must end the process.
        init: instead of MLX's own.

    Raises:
        TransportError: see `macmesh_rdma.jaccl.group.open_jaccl`.
    """
    group = open_jaccl(
        start.stage_index,
        len(start.deployment.stages),
        matrix_of(start),
        exchange,
        timeout_seconds=SET_UP_DEADLINE_SECONDS,
        on_stall=on_stall,
        init=init,
    )
    return StockCollectives("jaccl", group, StallWatch(on_stall), start.step_deadline_seconds)
