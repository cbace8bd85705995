"""A worker whose jaccl is MLX's ring: the ranks find each other through jaccl's own exchange, then join a ring.

``FAULT`` in the environment: "" for none; "mute RANK" ends that rank's part in the exchange; "refuse" makes the
set-up fail at every rank; "wedge RANK" sends that rank to sleep in the set-up, with the interpreter's lock; "drop
RANK" lets it stand and loses what that rank sends.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from macmesh_daemon.worker import jaccl_lane, main

FAULT, _, ARGUMENT = os.environ.get("JACCL_FAULT", "").partition(" ")
ADDRESS_BYTES = 32


def ring_in_place_of_jaccl(
    *, strict: bool, backend: str, all_gather_factory: Callable[[int, int], Callable[[bytes, int], bytes]]
) -> Any:
    import mlx.core as mx  # noqa: PLC0415  the worker decides when mlx is loaded

    from macmesh_rdma.ring.lane import ring_environment  # noqa: PLC0415  imports mlx
    from macmesh_rdma.ring.reserved_port import ReservedPort  # noqa: PLC0415  same
    from macmesh_rdma.stock_lane import StockLane  # noqa: PLC0415  same

    assert backend == "jaccl"
    rank = int(os.environ["MLX_RANK"])
    matrix = json.loads(Path(os.environ["MLX_IBV_DEVICES"]).read_text())
    assert matrix[rank][rank] is None
    assert all(name.startswith("rdma_en") for row in matrix for name in row if name is not None)
    if FAULT == "refuse":
        raise RuntimeError("[jaccl] Couldn't allocate protection domain")
    if FAULT == "wedge" and rank == int(ARGUMENT):
        ctypes.PyDLL(None).sleep(60)  # as native code that keeps the interpreter's lock
    gather = all_gather_factory(rank, len(matrix))
    if FAULT == "mute" and rank == int(ARGUMENT):
        raise RuntimeError("[jaccl] Changing queue pair to RTR failed with errno 16")
    reserved = ReservedPort("127.0.0.1")
    told = gather(reserved.address.encode().ljust(ADDRESS_BYTES), ADDRESS_BYTES)
    addresses = [told[at : at + ADDRESS_BYTES].decode().strip() for at in range(0, len(told), ADDRESS_BYTES)]
    with ring_environment(addresses, rank):
        group = mx.distributed.init(strict=strict, backend="ring")
    reserved.release()
    if FAULT == "drop" and rank == int(ARGUMENT):
        StockLane.send = lambda *_: None  # type: ignore[method-assign]
    return group


if __name__ == "__main__":
    jaccl_lane.SET_UP_DEADLINE_SECONDS = float(os.environ.get("JACCL_DEADLINE_SECONDS", "20"))
    sys.argv[0] = "macmesh-worker"
    main.main(ring_in_place_of_jaccl)
