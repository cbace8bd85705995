"""Why a placement does not split every layer over equal nodes, though that was allowed."""

from dataclasses import replace

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.feasibility import taking_part
from macmesh_placement.planner import attempt
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import Placement
from macmesh_placement.shards import TensorShard
from macmesh_placement.tensor import EQUAL_WITHIN, are_equal, tensor_ledger
from macmesh_placement.terms import terms_of


def why_no_tensor(request: PlanRequest, chosen: Placement) -> str:
    """The reason, for people, for each number of ways; empty where the layers are split, or it was not allowed.

    Args:
        request: What was asked.
        chosen: The planner's answer.
    """
    if chosen.parallelism == "tensor" or not request.allow_tensor_parallel:
        return ""
    profile, nodes = request.profile, taking_part(request)
    if not profile.tensor_shards:
        return f"mlx-lm cannot split the layers of {profile.model_type} over 2, 4 or 8 nodes"
    if len(nodes) < min(shard.ways for shard in profile.tensor_shards):
        return f"{len(nodes)} node(s) may take part, and every way needs one of its own"
    reasons = {
        shard.ways: _why_not(request, chosen, shard, nodes)
        for shard in profile.tensor_shards
        if shard.ways <= len(nodes)
    }
    return "; ".join(f"{ways} ways: {reason}" for ways, reason in sorted(reasons.items()))


def _why_not(
    request: PlanRequest, chosen: Placement, shard: TensorShard, nodes: tuple[NodeCapacity, ...]
) -> str:
    if request.stage_count not in {0, shard.ways}:
        return f"{request.stage_count} stage(s) were asked for"
    if len(request.pinned_node_ids) > shard.ways:
        return f"{len(request.pinned_node_ids)} nodes are required"
    uncut = replace(request.profile, cut_points=(), cut_reason="")
    found = attempt(replace(request, profile=uncut, stage_count=shard.ways))
    if found is not None:
        theirs, ours = (terms_of(one, request).objective_seconds for one in (found, chosen))
        return f"predicted {theirs * 1000:.1f} ms ({request.objective}), against {ours * 1000:.1f} ms"
    demand = request.demand(chosen.context_tokens)
    fitting = [n for n in nodes if tensor_ledger(request.profile, shard, demand, n).headroom_bytes >= 0]
    if len(fitting) < shard.ways:
        return f"a part fits on {len(fitting)} node(s) only"
    if not any(_has_equals(node, fitting, shard.ways) for node in fitting):
        return f"no {shard.ways} nodes are equal in speed within {EQUAL_WITHIN:.0%}".replace("%", " %")
    return f"no {shard.ways} equal nodes are joined by links of one kind, with the memory of their machines"


def _has_equals(node: NodeCapacity, nodes: list[NodeCapacity], count: int) -> bool:
    return sum(are_equal([node, other]) for other in nodes) >= count
