"""The contract of `GraphLane`, in memory and over our own groups, with the ranks as threads of one process."""

import functools
from collections.abc import Callable
from typing import Literal

import pytest

from bringing_up import EPOCH, KEY, SMALL, endpoints_of, in_threads, listeners
from macmesh_rdma.graph_lane import GraphLane
from macmesh_rdma.group import Group, open_group
from macmesh_rdma.group_graph_lane import GroupGraphLane
from macmesh_rdma.testing.graph_contract import CHECKS, PATIENCE_SECONDS, RECEIVE_SECONDS
from macmesh_rdma.testing.host_graph_lane import memory_graph_lanes

MakeLane = Callable[[int], GraphLane]


def open_groups(provider: Literal["shm", "tcp"]) -> list[Group]:
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


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", ["memory", "shm", "tcp"])
def test_the_contract_of_graph_lanes(kind: Literal["memory", "shm", "tcp"], name: str) -> None:
    seconds = RECEIVE_SECONDS if name == "waits_no_longer_than_its_deadline" else PATIENCE_SECONDS
    closes: list[Callable[[], None]] = []
    make: MakeLane
    if kind == "memory":
        lanes = memory_graph_lanes(2, seconds)
        make = lanes.__getitem__
    else:
        groups = open_groups(kind)
        closes = [group.close for group in groups]

        def make(rank: int) -> GraphLane:
            return GroupGraphLane(groups[rank], receive_seconds=seconds)

    outcomes = in_threads(
        [lambda rank=rank: CHECKS[name](make(rank), rank) for rank in range(2)]  # type: ignore[misc]  # bound
    )
    in_threads(closes)
    assert outcomes == [None, None]
