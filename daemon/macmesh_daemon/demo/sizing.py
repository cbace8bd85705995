"""How much memory each demo node may use, so that the unmodified planner needs all of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.demo.errors import LocalDemoSetupError
from macmesh_placement import LocalPlanRequestError, PlanRequest, usable_for_stage_count

if TYPE_CHECKING:
    from macmesh_placement import ModelProfile, Reserves


def usable_bytes_for(profile: ModelProfile, node_count: int, context_tokens: int, reserves: Reserves) -> int:
    """Usable memory with which `node_count` equal nodes hold the model and one fewer do not.

    Half-way between the two, so that a byte of difference decides nothing.

    Raises:
        LocalDemoSetupError: the model is too small, or too unevenly layered, to need that many nodes.
    """
    request = PlanRequest(profile=profile, nodes=(), context_tokens=context_tokens, reserves=reserves)
    try:
        found = usable_for_stage_count(profile, request.demand(), node_count, fused_attention=False)
    except LocalPlanRequestError as error:
        raise LocalDemoSetupError(f"{error}; or ask for fewer nodes") from error
    return found.middle_bytes
