"""The planner's entry point."""

from macmesh_placement.request import PlanRequest
from macmesh_placement.result import Placement, Refusal


def plan(request: PlanRequest) -> Placement | Refusal:
    """The best placement of the model on the nodes, or why there is none."""
    raise NotImplementedError(request.profile.model_id)
