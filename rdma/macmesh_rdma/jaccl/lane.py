"""A tensor lane over RDMA over Thunderbolt. Imports mlx."""

from collections.abc import Callable

from macmesh_rdma.jaccl.device_matrix import DeviceMatrix
from macmesh_rdma.jaccl.exchange import Exchange
from macmesh_rdma.jaccl.group import Init, open_jaccl
from macmesh_rdma.stall import StallWatch
from macmesh_rdma.stock_lane import StockLane


def open_jaccl_lane(
    rank: int,
    matrix: DeviceMatrix,
    exchange: Exchange,
    *,
    timeout_seconds: float,
    on_stall: Callable[[str], None],
    init: Init | None = None,
) -> StockLane:
    """Joins the group of a plan's stages, tests it, and makes it their lane.

    The backend numbers no message and says nothing of several threads: sends and receives share a stream, so they
    are made one at a time and in the order of the calls.

    Args:
        rank: this stage.
        matrix: devices of all stages, head first.
        exchange: to the other stages; used during the call only.
        timeout_seconds: for the set-up, and again for the test.
        on_stall: called from another thread where the test or a later wait passes its deadline; must end the
            process.
        init: instead of MLX's own.

    Raises:
        TransportError: see `macmesh_rdma.jaccl.group.open_jaccl`.
    """
    group = open_jaccl(
        rank,
        len(matrix.devices),
        matrix,
        exchange,
        timeout_seconds=timeout_seconds,
        on_stall=on_stall,
        init=init,
    )
    return StockLane("jaccl", group, StallWatch(on_stall), one_stream=True)
