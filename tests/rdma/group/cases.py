"""What the ranks of `ranks.Ranks` are asked to do. Every function gets the rank's context first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import mlx.core as mx

from macmesh_rdma import _group

if TYPE_CHECKING:
    from ranks import LinkDescriptors, RankSetup

OPTIONS = {
    "num_buffers": 8,
    "frame_bytes": 65536,
    "buffer_sizes": 6,
    "max_outstanding": 256,
    "spin_us": 20.0,
}


def make_link(given: LinkDescriptors) -> _group.Link:
    """One end of a link."""
    options = _group.LinkOptions(**OPTIONS)
    if given.provider == "shm":
        return _group.shm_link(*given.descriptors, options)
    return _group.tcp_link(given.descriptors[0], options)


class Context:
    """A rank's group, made from what the parent gave."""

    def __init__(self, setup: RankSetup) -> None:
        self.setup = setup
        self.group = _group.MeshGroup(
            rank=setup.rank,
            size=setup.size,
            peers={
                peer: (
                    [make_link(link) for link in setup.point_to_point[peer]],
                    [make_link(link) for link in setup.collective[peer]],
                    setup.side[peer],
                )
                for peer in setup.side
            },
            epoch=setup.epoch,
            name="test",
            timeout_seconds=setup.timeout_seconds,
            spin_us=setup.spin_us,
        )
        self.mlx = self.group.mlx
        self.rank = setup.rank
        self.size = setup.size


def smoke(context: Context) -> tuple[list[float], list[float]]:
    x = mx.array([1.0, 2.0, 3.0]) * (context.rank + 1)
    total = mx.distributed.all_sum(x, group=context.mlx)
    mx.eval(total)
    if context.rank == 0:
        mx.eval(mx.distributed.send(x, 1, group=context.mlx))
        back = mx.distributed.recv_like(x, 1, group=context.mlx)
    else:
        back = mx.distributed.recv_like(x, 0, group=context.mlx)
        mx.eval(back)
        mx.eval(mx.distributed.send(back * 2, 0, group=context.mlx))
    return total.tolist(), back.tolist()


def ping(context: Context, bytes_: int, count: int) -> list[float]:
    """Half a round trip of arrays through MLX, in seconds."""
    x = mx.zeros((bytes_ // 2,), mx.bfloat16)
    mx.eval(x)
    times = []
    stream = mx.cpu
    for _ in range(count):
        start = time.perf_counter()
        if context.rank == 0:
            mx.eval(mx.distributed.send(x, 1, group=context.mlx, stream=stream))
            mx.eval(mx.distributed.recv_like(x, 1, group=context.mlx, stream=stream))
        else:
            got = mx.distributed.recv_like(x, 0, group=context.mlx, stream=stream)
            mx.eval(mx.distributed.send(got, 0, group=context.mlx, stream=stream))
        times.append((time.perf_counter() - start) / 2)
    return times
