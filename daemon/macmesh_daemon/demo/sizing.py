"""How much memory each demo node may use, so that the unmodified planner needs all of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.demo.errors import LocalDemoSetupError
from macmesh_placement import NodeCapacity, Placement, PlanRequest, Reserves, plan

if TYPE_CHECKING:
    from macmesh_placement import ModelProfile

_RAM_BYTES = 1 << 40
#: Room above the smallest cap that works, so that a byte of difference does not decide.
_MARGIN = 1.01


def usable_bytes_for(profile: ModelProfile, node_count: int, context_tokens: int, reserves: Reserves) -> int:
    """The least usable memory, a hundredth more, with which `node_count` equal nodes hold the model.

    With it fewer nodes do not suffice, which is checked.

    Raises:
        LocalDemoSetupError: the model is too small, or too unevenly layered, to need that many nodes.
    """

    def fits(nodes: int, usable_bytes: int) -> bool:
        request = PlanRequest(
            profile=profile,
            nodes=tuple(
                NodeCapacity(
                    node_id=f"n{i}",
                    ram_bytes=_RAM_BYTES,
                    usable_bytes=usable_bytes,
                    bandwidth_gb_per_s=10.0,
                    fused_attention=False,
                )
                for i in range(nodes)
            ),
            context_tokens=context_tokens,
            reserves=reserves,
        )
        return isinstance(plan(request), Placement)

    low, high = 0, 1
    while not fits(node_count, high):
        low, high = high, high * 2
        if high > _RAM_BYTES:
            raise LocalDemoSetupError(f"no memory lets {node_count} nodes hold {profile.model_id}")
    while high - low > max(1, high // 10_000):
        middle = (low + high) // 2
        low, high = (low, middle) if fits(node_count, middle) else (middle, high)
    cap = int(high * _MARGIN)
    if node_count > 1 and fits(node_count - 1, cap):
        raise LocalDemoSetupError(
            f"{profile.model_id} does not need {node_count} nodes at a context of {context_tokens} tokens: "
            "ask for fewer nodes or a longer context"
        )
    return cap
