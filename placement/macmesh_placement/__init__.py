"""Placement: model profiles, byte-exact ledgers and the planner. Pure: no I/O.

`plan` takes a `PlanRequest` (a `ModelProfile`, some `NodeCapacity` and what counts) and returns a
`Placement`, whose ledgers anyone can re-add, or a `Refusal` that says what would fit. The errors are listed
in `macmesh_placement.errors`.
"""

from macmesh_placement.attention import AttentionFacts
from macmesh_placement.cachecost import CachePiece
from macmesh_placement.capacity import Cluster, NodeCapacity, cluster_from_json
from macmesh_placement.caps import UsableRange, usable_for_stage_count
from macmesh_placement.errors import (
    LocalClusterError,
    LocalPlacementError,
    LocalPlanRequestError,
    LocalProfileError,
    PlacementError,
)
from macmesh_placement.explain import Alternative, alternatives
from macmesh_placement.layers import LayerProfile
from macmesh_placement.ledger import Ledger, LedgerEntry, Reserves, StageDemand, stage_ledger
from macmesh_placement.links import Link, LinkKind
from macmesh_placement.planner import plan
from macmesh_placement.profile import ModelProfile, all_cut_points
from macmesh_placement.readd import readd
from macmesh_placement.request import Objective, PlanRequest
from macmesh_placement.result import (
    Certificate,
    HostDeficit,
    NodeDeficit,
    Placement,
    Refusal,
    RefusalKind,
    StagePlacement,
    WhatIf,
)
from macmesh_placement.result_json import result_from_json
from macmesh_placement.scratch import Scratch, ScratchTerm
from macmesh_placement.shards import TensorShard
from macmesh_placement.stagecache import StageCacheCost, cache_budget_bytes, stage_cache_cost
from macmesh_placement.terms import Readded, StageTerms

__all__ = [
    "Alternative",
    "AttentionFacts",
    "CachePiece",
    "Certificate",
    "Cluster",
    "HostDeficit",
    "LayerProfile",
    "Ledger",
    "LedgerEntry",
    "Link",
    "LinkKind",
    "LocalClusterError",
    "LocalPlacementError",
    "LocalPlanRequestError",
    "LocalProfileError",
    "ModelProfile",
    "NodeCapacity",
    "NodeDeficit",
    "Objective",
    "Placement",
    "PlacementError",
    "PlanRequest",
    "Readded",
    "Refusal",
    "RefusalKind",
    "Reserves",
    "Scratch",
    "ScratchTerm",
    "StageCacheCost",
    "StageDemand",
    "StagePlacement",
    "StageTerms",
    "TensorShard",
    "UsableRange",
    "WhatIf",
    "all_cut_points",
    "alternatives",
    "cache_budget_bytes",
    "cluster_from_json",
    "plan",
    "readd",
    "result_from_json",
    "stage_cache_cost",
    "stage_ledger",
    "usable_for_stage_count",
]
