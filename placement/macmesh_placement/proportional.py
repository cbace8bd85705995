"""The split that people make by hand: layers in proportion to memory."""

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.feasibility import taking_part
from macmesh_placement.request import PlanRequest

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
