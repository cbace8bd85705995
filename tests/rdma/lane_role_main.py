"""One stage of a lane as a process: tells where it listens, learns the others' from stdin, plays a role."""

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Literal

from lane_contract import ROLES
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.lane import TensorLane
from macmesh_rdma.ring.reserved_port import ReservedPort


def tell(words: object) -> None:
    sys.stdout.write((words if isinstance(words, str) else json.dumps(words)) + "\n")
    sys.stdout.flush()


def ring(index: int, join_seconds: float) -> tuple[str, Callable[[list[str]], TensorLane]]:
    from macmesh_rdma.ring.lane import open_ring  # noqa: PLC0415  imports mlx

    reserved = ReservedPort("127.0.0.1")

    def stalled(what: str) -> None:
        tell(["stalled", what])
        os._exit(7)

    return reserved.address, lambda addresses: open_ring(
        addresses, index, reserved, on_stall=stalled, timeout_seconds=join_seconds
    )


def jaccl(index: int) -> tuple[str, Callable[[list[str]], TensorLane]]:
    """The lane over jaccl, with MLX's ring in the place of its backend and without its self-test."""
    import mlx.core as mx  # noqa: PLC0415  imports mlx

    from macmesh_rdma.jaccl import group as jaccl_group  # noqa: PLC0415  same
    from macmesh_rdma.jaccl.device_matrix import DeviceMatrix  # noqa: PLC0415  same
    from macmesh_rdma.jaccl.exchange import RingExchange  # noqa: PLC0415  same
    from macmesh_rdma.jaccl.lane import open_jaccl_lane  # noqa: PLC0415  same
    from macmesh_rdma.ring.lane import ring_environment  # noqa: PLC0415  same

    reserved = ReservedPort("127.0.0.1")
    jaccl_group.check_group = lambda group: None  # type: ignore[attr-defined]  # noqa: ARG005  by position

    def join(addresses: list[str]) -> TensorLane:
        def ring_instead(**_: object) -> mx.distributed.Group:
            with ring_environment(addresses, index):
                return mx.distributed.init(strict=True, backend="ring")

        size = len(addresses)
        return open_jaccl_lane(
            index,
            DeviceMatrix(((("rdma_en2",),) * size,) * size, ring=False),
            RingExchange(index, size, lambda _message: None),
            timeout_seconds=60,
            on_stall=lambda what: tell(["stalled", what]),
            init=ring_instead,
        )

    return reserved.address, join


def group(
    index: int, provider: Literal["shm", "tcp"], join_seconds: float
) -> tuple[str, Callable[[list[str]], TensorLane]]:
    from macmesh_rdma.group import open_group  # noqa: PLC0415  imports mlx
    from macmesh_rdma.group_lane import GroupLane  # noqa: PLC0415  same

    listener = Listener("127.0.0.1", host_id="here")

    def join(addresses: list[str]) -> TensorLane:
        opened = open_group(
            listener,
            index,
            [Endpoint.decode(address) for address in addresses],
            key=b"lane contract key",
            epoch=(1, 2, 3),
            topology="pipeline",
            provider=provider,
            connect_seconds=join_seconds,
        )
        listener.close()
        return GroupLane(opened)

    return listener.endpoint.encode(), join


def main() -> None:
    index, role, transport = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    join_seconds, wait_seconds = map(float, sys.argv[4:])
    if transport == "ring":
        address, join = ring(index, join_seconds)
    elif transport == "jaccl":
        address, join = jaccl(index)
    else:
        address, join = group(index, "shm" if transport == "shm" else "tcp", join_seconds)
    tell(address)
    lane = join(json.loads(sys.stdin.readline()))
    if role == "hang":
        sys.stdin.read()
    elif role == "wait":
        import mlx.core as mx  # noqa: PLC0415  only this role needs it

        lane.receive((1,), mx.float32, wait_seconds)
    else:
        tell(ROLES[role](lane))
        if role not in ("leave", "be_left"):
            sys.stdin.read()  # keep the sockets until everybody is done
    # MLX's threads may wait for ever for a neighbour that has gone.
    threading.Timer(5, os._exit, (9,)).start()
    os._exit(0)


if __name__ == "__main__":
    main()
