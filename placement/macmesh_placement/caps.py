"""How much usable memory equal nodes need for a given number of stages."""

from typing import NamedTuple

import numpy as np

from macmesh_placement.errors import LocalPlanRequestError
from macmesh_placement.ledger import StageDemand
from macmesh_placement.profile import ModelProfile
from macmesh_placement.tables import Integers, stage_totals, whole_model_bytes


class UsableRange(NamedTuple):
    """Usable bytes per node from ``least_bytes`` up to, without, ``below_bytes``."""

    least_bytes: int
    below_bytes: int

    @property
    def middle_bytes(self) -> int:
        """A value well within the range."""
        return (self.least_bytes + self.below_bytes) // 2


def usable_for_stage_count(
    profile: ModelProfile, demand: StageDemand, stage_count: int, *, fused_attention: bool = True
) -> UsableRange:
    """The usable bytes with which that many equal nodes hold the model and one node fewer does not.

    Capping each of ``stage_count`` nodes anywhere within the range makes the planner use all of them.

    Args:
        profile: The model.
        demand: How the stages will be used.
        stage_count: Number of stages wanted.
        fused_attention: The nodes' backend has fused attention kernels.

    Raises:
        LocalPlanRequestError: The model cannot be cut into so many stages, or they need no less memory each.
    """
    if not 1 <= stage_count <= len(profile.cut_points) + 1:
        raise LocalPlanRequestError(
            f"{profile.model_id} allows 1 to {len(profile.cut_points) + 1} stages, not {stage_count}"
        )
    totals = stage_totals(profile, demand, fused_attention=fused_attention)
    needs = [whole_model_bytes(profile, demand, totals)]
    needs += [_least_largest_stage(totals, count) for count in range(2, stage_count + 1)]
    below = min(needs[:-1], default=2 * needs[0])
    if needs[-1] >= below:
        raise LocalPlanRequestError(
            f"{stage_count} stages of {profile.model_id} need {needs[-1]:,} bytes each, and fewer need "
            f"no more than {below:,}: no cap forces {stage_count}. Lower the reserves, or raise the context"
        )
    return UsableRange(needs[-1], below)


def _least_largest_stage(totals: Integers, stage_count: int) -> int:
    """The least possible size of the largest of exactly ``stage_count`` stages."""
    count = len(totals)
    unreachable = np.iinfo(np.int64).max
    stages = np.where(np.triu(np.ones((count, count), dtype=bool), k=1), totals, unreachable)
    best = stages[0]
    for _ in range(stage_count - 1):
        best = np.maximum(best[:, None], stages).min(axis=0)
    return int(best[-1])
