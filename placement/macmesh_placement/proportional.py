"""The split that people make by hand: layers in proportion to memory."""

from dataclasses import replace

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.errors import LocalPlacementError
from macmesh_placement.feasibility import taking_part
from macmesh_placement.ledger import stage_ledger
from macmesh_placement.readd import check_shape, host_deficits, load_bytes
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import Certificate, NodeDeficit, Placement, Refusal, StagePlacement
from macmesh_placement.terms import prefill_hops, terms_of

Split = list[tuple[NodeCapacity, int, int]]
"""Stages from first to last: (node, first layer, end layer)."""


def proportional_split(request: PlanRequest) -> Split:
    """Gives every node layers in proportion to its usable memory, by largest remainder.

    Weights alone, whatever caches and scratch take: what it is compared for. Nodes keep the request's order,
    but for a pinned head and tail; who gets no layer is left out. Where the model cannot be cut there, a cut
    moves to the nearest place where it can.
    """
    nodes = sorted(
        taking_part(request),
        key=lambda node: (node.node_id != request.head_node_id, node.node_id == request.tail_node_id),
    )
    total = sum(node.usable_bytes for node in nodes)
    count = request.profile.layer_count
    if total == 0:
        return []
    counts = [count * node.usable_bytes // total for node in nodes]
    by_remainder = sorted(
        range(len(nodes)), key=lambda index: (-(count * nodes[index].usable_bytes % total), index)
    )
    for index in by_remainder[: count - sum(counts)]:
        counts[index] += 1
    split: Split = []
    begin = wanted = 0
    for node, layers in zip(nodes, counts, strict=True):
        wanted += layers
        end = _nearest_cut(request, wanted)
        if end > begin:
            split.append((node, begin, end))
            begin = end
    return split


def _nearest_cut(request: PlanRequest, layer: int) -> int:
    edges = (0, *request.profile.cut_points, request.profile.layer_count)
    return min(edges, key=lambda edge: (abs(edge - layer), edge))


def placed_in_proportion(request: PlanRequest) -> Placement | Refusal | None:
    """The proportional split as a placement, or why it does not fit; None where pins forbid it."""
    split = proportional_split(request)
    if not split:
        return None
    placement = _timed(request, split)
    try:
        check_shape(placement, request)
    except LocalPlacementError:
        return None
    deficits = tuple(
        NodeDeficit(
            node_id=stage.node_id,
            first_layer=stage.first_layer,
            end_layer=stage.end_layer,
            needed_bytes=stage.ledger.total_bytes,
            usable_bytes=stage.ledger.usable_bytes,
            deficit_bytes=-stage.ledger.headroom_bytes,
        )
        for stage in placement.stages
        if stage.ledger.headroom_bytes < 0
    )
    hosts = host_deficits(placement, request)
    if not deficits and not hosts:
        return placement
    return Refusal(
        kind="does_not_fit",
        message="Layers in proportion to memory do not fit.",
        context_tokens=placement.context_tokens,
        position_limit=request.profile.position_limit,
        bytes_to_add=sum(deficit.deficit_bytes for deficit in deficits),
        deficits=deficits,
        host_deficits=hosts,
    )


def _timed(request: PlanRequest, split: Split) -> Placement:
    """The split as a placement, whether it fits or not."""
    demand = request.demand()
    stages = tuple(
        StagePlacement(
            index=index,
            node_id=node.node_id,
            first_layer=first,
            end_layer=end,
            ledger=stage_ledger(
                request.profile,
                demand,
                first_layer=first,
                end_layer=end,
                usable_bytes=node.usable_bytes,
                fused_attention=node.fused_attention,
            ),
            predicted_seconds=0.0,
            bytes_to_load=load_bytes(request.profile, node, first, end),
        )
        for index, (node, first, end) in enumerate(split)
    )
    draft = Placement(
        model_id=request.profile.model_id,
        digest=request.profile.digest,
        layer_count=request.profile.layer_count,
        context_tokens=demand.context_tokens,
        slots=request.slots,
        prefill_chunk_tokens=request.prefill_chunk_tokens,
        objective=request.objective,
        stages=stages,
        predicted_decode_seconds=0.0,
        predicted_slowest_stage_seconds=0.0,
        bytes_to_load=sum(stage.bytes_to_load for stage in stages),
        certificate=Certificate(
            exact=False,
            method="layers in proportion to usable memory, largest remainder",
            best_objective_seconds=0.0,
            objective_seconds=0.0,
            fewest_bytes_proved=False,
        ),
        kv_bits=request.profile.kv_bits,
    )
    sums = terms_of(draft, request)
    decode = terms_of(draft, replace(request, prefill_share=0.0)).latency_seconds
    timed = tuple(
        replace(stage, predicted_seconds=terms.seconds, hop_seconds=terms.hop_seconds)
        for stage, terms in zip(stages, sums.stages, strict=True)
    )
    prefill = sum(terms.prefill_seconds for terms in sums.stages)
    prefill += sum(prefill_hops(draft, request))
    return replace(
        draft,
        stages=timed,
        predicted_decode_seconds=decode,
        predicted_slowest_stage_seconds=sums.slowest_seconds,
        predicted_prefill_seconds_per_token=prefill,
        certificate=replace(
            draft.certificate,
            best_objective_seconds=sums.objective_seconds,
            objective_seconds=sums.objective_seconds,
        ),
    )
