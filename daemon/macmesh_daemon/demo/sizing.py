"""How much memory each demo node may use, so that the unmodified planner needs all of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.demo.errors import LocalDemoSetupError
from macmesh_placement import NodeCapacity, Placement, PlanRequest, Reserves, plan

if TYPE_CHECKING:
    from macmesh_placement import ModelProfile

_RAM_BYTES = 1 << 40


def usable_bytes_for(profile: ModelProfile, node_count: int, context_tokens: int, reserves: Reserves) -> int:
    """Usable memory with which `node_count` equal nodes hold the model and one fewer do not.

    Half-way between the two, so that a byte of difference decides nothing.

    Raises:
        LocalDemoSetupError: the model is too small, or too unevenly layered, to need that many nodes.
    """
    least = _least_usable_bytes(profile, node_count, context_tokens, reserves)
    if node_count == 1:
        return least
    fewer = _least_usable_bytes(profile, node_count - 1, context_tokens, reserves)
    if fewer <= least:
        raise LocalDemoSetupError(
            f"{profile.model_id} does not need {node_count} nodes at a context of {context_tokens} tokens: "
            "ask for fewer nodes or a longer context"
        )
    return (least + fewer) // 2


def _least_usable_bytes(
    profile: ModelProfile, node_count: int, context_tokens: int, reserves: Reserves
) -> int:
    """The least usable memory with which up to `node_count` equal nodes hold the model, by bisection."""
    low, high = 0, 1
    while not _fits(profile, node_count, high, context_tokens, reserves):
        low, high = high, high * 2
        if high > _RAM_BYTES:
            raise LocalDemoSetupError(f"no memory lets {node_count} nodes hold {profile.model_id}")
    while high - low > 1:
        middle = (low + high) // 2
        fits = _fits(profile, node_count, middle, context_tokens, reserves)
        low, high = (low, middle) if fits else (middle, high)
    return high


def _fits(
    profile: ModelProfile, node_count: int, usable_bytes: int, context_tokens: int, reserves: Reserves
) -> bool:
    nodes = tuple(
        NodeCapacity(
            node_id=f"n{index}",
            ram_bytes=_RAM_BYTES,
            usable_bytes=usable_bytes,
            bandwidth_gb_per_s=10.0,
            fused_attention=False,
        )
        for index in range(node_count)
    )
    request = PlanRequest(profile=profile, nodes=nodes, context_tokens=context_tokens, reserves=reserves)
    return isinstance(plan(request), Placement)
