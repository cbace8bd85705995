"""The contract of `GraphLane`, in memory and over our own groups, with the ranks as threads of one process."""

import functools
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from bringing_up import EPOCH, KEY, SMALL, endpoints_of, in_threads, listeners
from macmesh_rdma.cuda_set_up import open_cuda_graph_lane
from macmesh_rdma.graph_lane import GraphLane
from macmesh_rdma.group import Group, open_group
from macmesh_rdma.group_graph_lane import GroupGraphLane
from macmesh_rdma.group_host_lane import GroupHostLane
from macmesh_rdma.testing.graph_contract import (
    BUFFERS,
    CHECKS,
    MOST_PAYLOAD_BYTES,
    PATIENCE_SECONDS,
    RECEIVE_SECONDS,
)
from macmesh_rdma.testing.host_graph_lane import memory_graph_lanes
from macmesh_rdma.testing.host_kernels import HostKernels
from support.mlx_errors import forget_errors

MakeLane = Callable[[int], GraphLane]


def open_groups(provider: Literal["shm"]) -> list[Group]:
    with listeners(2) as made:
        endpoints = endpoints_of(made)

        def join(rank: int) -> Group:
            return open_group(
                made[rank],
                rank,
                endpoints,
                key=KEY,
                epoch=EPOCH,
                options=SMALL,
                provider=provider,
                lanes=(0,),
                timeout_seconds=PATIENCE_SECONDS,
                measure=False,
            )

        outcomes = in_threads([functools.partial(join, rank) for rank in range(2)])
    for outcome in outcomes:
        assert isinstance(outcome, Group), outcome
    return outcomes


@pytest.fixture(scope="module")
def kernels() -> Iterator[HostKernels]:
    """Compiled once for all."""
    made = HostKernels()
    yield made
    made.close()


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", ["memory", "shm", "kernels"])
def test_the_contract_of_graph_lanes(
    kind: Literal["memory", "shm", "kernels"], name: str, kernels: HostKernels
) -> None:
    seconds = RECEIVE_SECONDS if name == "waits_no_longer_than_its_deadline" else PATIENCE_SECONDS
    forget_errors()
    closes: list[Callable[[], None]] = []
    make: MakeLane
    if kind == "memory":
        lanes = memory_graph_lanes(2, seconds)
        make = lanes.__getitem__
    else:
        groups = open_groups("shm")
        closes = [group.close for group in groups]

        def make(rank: int) -> GraphLane:
            if kind == "kernels":
                return open_cuda_graph_lane(
                    GroupHostLane(groups[rank]),
                    rank,
                    2,
                    payload_bytes=MOST_PAYLOAD_BYTES,
                    buffers=BUFFERS,
                    receive_seconds=seconds,
                    set_up_seconds=PATIENCE_SECONDS,
                    failure=lambda: groups[rank].failure,
                    kernels=kernels,
                )
            return GroupGraphLane(groups[rank], receive_seconds=seconds)

    outcomes = in_threads(
        [lambda rank=rank: CHECKS[name](make(rank), rank) for rank in range(2)]  # type: ignore[misc]  # bound
    )
    in_threads(closes)
    forget_errors()
    assert outcomes == [None, None]
