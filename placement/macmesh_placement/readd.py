"""Adds a placement up again, from the request alone.

Nothing here uses the search's tables: each term is a sum over layers in plain numbers (times in
`macmesh_placement.terms`). So an error in the tables shows as a placement that does not add up.
"""

import math

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.errors import LocalPlacementError
from macmesh_placement.ledger import Ledger, stage_ledger
from macmesh_placement.profile import ModelProfile
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import HostDeficit, Placement
from macmesh_placement.tensor import tensor_ledger
from macmesh_placement.terms import Readded, shard_of, terms_of

_CLOSE = 1e-9


def readd(placement: Placement, request: PlanRequest) -> Readded:
    """Adds up every ledger and every time of a placement again.

    Args:
        placement: What the planner answered.
        request: What it was asked.

    Raises:
        LocalPlacementError: The placement does not answer the request, or its sums are wrong.
    """
    check_shape(placement, request)
    _check_ledgers(placement, request)
    _check_loads(placement, request)
    sums = terms_of(placement, request)
    for stage, terms in zip(placement.stages, sums.stages, strict=True):
        name = f"stage {stage.index} predicted_seconds"
        _require_close(stage.predicted_seconds, terms.seconds, name)
        _require_close(stage.hop_seconds, terms.hop_seconds, f"stage {stage.index} hop_seconds")
    proof = placement.certificate
    _require_close(placement.predicted_slowest_stage_seconds, sums.slowest_seconds, "slowest stage")
    _require_close(proof.objective_seconds, sums.objective_seconds, "certificate objective_seconds")
    limit = proof.best_objective_seconds * (1 + request.tolerance) * (1 + 1e-8)
    if sums.objective_seconds > limit:
        raise LocalPlacementError(
            f"objective_seconds {sums.objective_seconds} is not within {request.tolerance} of the best, "
            f"{proof.best_objective_seconds}"
        )
    return sums


def _check_loads(placement: Placement, request: PlanRequest) -> None:
    nodes = {node.node_id: node for node in request.nodes}
    if placement.parallelism == "pipeline":
        for stage in placement.stages:
            span = stage.first_layer, stage.end_layer
            load = load_bytes(request.profile, nodes[stage.node_id], *span)
            if stage.bytes_to_load != load:
                raise LocalPlacementError(
                    f"stage {stage.index} bytes_to_load says {stage.bytes_to_load}, but it lacks {load} bytes"
                )
    if placement.bytes_to_load != sum(stage.bytes_to_load for stage in placement.stages):
        raise LocalPlacementError(f"bytes_to_load {placement.bytes_to_load} is not the sum over the stages")


def _require_close(said: float, found: float, name: str) -> None:
    if not math.isclose(said, found, rel_tol=_CLOSE, abs_tol=1e-18):
        raise LocalPlacementError(f"{name} says {said}, but its terms give {found}")


def check_shape(placement: Placement, request: PlanRequest) -> None:
    """Raises `LocalPlacementError` unless the stages cover the model as the request allows, size aside."""
    profile = request.profile
    used = [stage.node_id for stage in placement.stages]
    known = {node.node_id for node in request.nodes} - request.excluded_node_ids
    if not used or len(set(used)) < len(used) or not set(used) <= known:
        raise LocalPlacementError(f"the stages are not on distinct nodes of the request: {', '.join(used)}")
    if not request.pinned_node_ids <= set(used):
        raise LocalPlacementError(f"required nodes are left out: {request.pinned_node_ids - set(used)}")
    if request.head_node_id not in {"", used[0]} or request.tail_node_id not in {"", used[-1]}:
        raise LocalPlacementError(f"the first and last stage are on {used[0]} and {used[-1]}, not as pinned")
    if request.stage_count not in {0, len(used)}:
        raise LocalPlacementError(f"{len(used)} stages, but stage_count is {request.stage_count}")
    if placement.parallelism == "tensor":
        whole = all((s.first_layer, s.end_layer) == (0, profile.layer_count) for s in placement.stages)
        if not whole or not request.allow_tensor_parallel:
            raise LocalPlacementError("tensor parallelism is not allowed, or a stage lacks layers")
        return
    edges = [0, *(stage.end_layer for stage in placement.stages)]
    starts = [stage.first_layer for stage in placement.stages]
    if starts != edges[:-1] or edges[-1] != profile.layer_count:
        raise LocalPlacementError(f"the stages do not cover the {profile.layer_count} layers in order")
    if not set(edges[1:-1]) <= set(profile.cut_points):
        raise LocalPlacementError(f"stages end at {edges[1:-1]}, where the model cannot be cut")


def _check_ledgers(placement: Placement, request: PlanRequest) -> None:
    nodes = {node.node_id: node for node in request.nodes}
    for stage in placement.stages:
        node = nodes[stage.node_id]
        ledger = _ledger(placement, request, node, stage.first_layer, stage.end_layer)
        if ledger != stage.ledger:
            raise LocalPlacementError(
                f"stage {stage.index} ledger says {stage.ledger.total_bytes} bytes of "
                f"{stage.ledger.usable_bytes}, but its lines give {ledger.total_bytes} of {ledger.usable_bytes}"
            )
        if ledger.headroom_bytes < 0:
            raise LocalPlacementError(f"stage {stage.index} lacks {-ledger.headroom_bytes} bytes")
    for line in host_deficits(placement, request):
        raise LocalPlacementError(
            f"machine {line.host_id} would need {line.needed_bytes} bytes of its {line.budget_bytes}"
        )


def host_deficits(placement: Placement, request: PlanRequest) -> tuple[HostDeficit, ...]:
    """The RAM that machines lack for the placement's ledgers, where several nodes share them.

    A machine has what the lowest reading of all its nodes says, whether they take part or not.
    """
    members: dict[str, list[NodeCapacity]] = {}
    for node in request.nodes:
        members.setdefault(node.host, []).append(node)
    found = []
    for host, nodes in sorted(members.items()):
        names = {node.node_id for node in nodes}
        needed = sum(stage.ledger.total_bytes for stage in placement.stages if stage.node_id in names)
        budget = int(min(node.ram_bytes for node in nodes) * (1 - request.reserves.host_reserve_fraction))
        if len(nodes) > 1 and needed > budget:
            found.append(
                HostDeficit(
                    host_id=host,
                    needed_bytes=needed,
                    budget_bytes=budget,
                    deficit_bytes=needed - budget,
                )
            )
    return tuple(found)


def load_bytes(profile: ModelProfile, node: NodeCapacity, first_layer: int, end_layer: int) -> int:
    """Bytes of parameters of a pipeline's stage that the node does not hold."""
    whole = node.resident_ways == 1
    layers = range(first_layer, end_layer)
    load = sum(
        profile.layers[layer].weight_bytes
        for layer in layers
        if not (whole and layer in node.resident_layers)
    )
    head, tail = first_layer == 0, end_layer == profile.layer_count
    one_copy = head and tail and profile.tied
    if head and not (whole and node.holds_embedding):
        load += profile.embedding_bytes
        if one_copy and whole and node.holds_head:
            load -= profile.tied_copy_bytes
    if tail and not (whole and node.holds_head):
        load += profile.norm_bytes if one_copy else profile.tail_bytes
    return load


def _ledger(
    placement: Placement, request: PlanRequest, node: NodeCapacity, first_layer: int, end_layer: int
) -> Ledger:
    demand = request.demand(placement.context_tokens)
    if placement.parallelism == "tensor":
        return tensor_ledger(request.profile, shard_of(placement, request), demand, node)
    return stage_ledger(
        request.profile,
        demand,
        first_layer=first_layer,
        end_layer=end_layer,
        usable_bytes=node.usable_bytes,
        fused_attention=node.fused_attention,
    )
