"""Refusals that help: what binds, what would fit, and how much is missing where."""

from itertools import combinations

import numpy as np

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.constrained import SearchTooLargeError
from macmesh_placement.problem import Problem
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import NodeDeficit, Refusal
from macmesh_placement.tables import Floats

#: Most nodes for which the fewest bytes to add are sought over every order.
_MAX_DEFICIT_NODES = 8


def refuse_early(request: PlanRequest, nodes: tuple[NodeCapacity, ...]) -> Refusal | None:
    """The refusal of an ask that no amount of memory could meet, or None."""
    profile, context = request.profile, request.resolved_context_tokens
    limit = profile.position_limit
    if not nodes:
        return Refusal(kind="no_nodes", message="No node may take part: add one, or leave fewer out.")
    if context == 0:
        return Refusal(
            kind="needs_context",
            message=f"{profile.model_id} names no position limit: ask for a context explicitly.",
        )
    if limit is not None and context > limit:
        return Refusal(
            kind="above_position_limit",
            message=f"A context of {context} is above the position limit of {profile.model_id}, {limit}: "
            f"ask for {limit} at most.",
            context_tokens=context,
            position_limit=limit,
        )
    most = min(len(nodes), len(profile.cut_points) + 1)
    if request.stage_count > most:
        why = f" ({profile.cut_reason})" if profile.cut_reason else ""
        return Refusal(
            kind="stage_count",
            message=f"{request.stage_count} stages were asked for, but {len(nodes)} nodes and "
            f"{len(profile.cut_points)} places to cut{why} allow {most} at most.",
            context_tokens=context,
            position_limit=limit,
        )
    return None


def refuse_for_size(request: PlanRequest, nodes: tuple[NodeCapacity, ...], context_tokens: int) -> Refusal:
    """The refusal of an ask that these nodes are too small for."""
    profile = request.profile
    largest = largest_context(request, nodes, context_tokens)
    deficits = fewest_bytes_to_add(request, nodes, context_tokens)
    missing = sum(deficit.deficit_bytes for deficit in deficits)
    binding = _binding(request, nodes, context_tokens, largest, missing)
    uncut = not profile.cut_points and bool(profile.cut_reason) and len(nodes) > 1
    asked = f"{profile.model_id} at a context of {context_tokens} x {request.slots}"
    parts = [f"{asked} does not fit: {missing:,} bytes of usable memory are missing ({binding} decides)."]
    if uncut:
        parts.append(f"It runs only whole, on one node: {profile.cut_reason}.")
    if largest:
        parts.append(f"The largest context that fits is {largest}.")
    else:
        parts.append("No context fits on these nodes.")
    names = {node.node_id: node.label for node in nodes}
    parts += [
        f"{names[deficit.node_id]} would need {deficit.deficit_bytes:,} bytes more for layers "
        f"{deficit.first_layer} to {deficit.end_layer - 1}."
        for deficit in deficits
    ]
    return Refusal(
        kind="unsupported_architecture" if uncut else "does_not_fit",
        message=" ".join(parts),
        context_tokens=context_tokens,
        position_limit=profile.position_limit,
        largest_context_tokens=largest,
        binding=binding,
        bytes_to_add=missing if deficits else None,
        deficits=tuple(deficits),
    )


def fits(request: PlanRequest, nodes: tuple[NodeCapacity, ...], context_tokens: int) -> bool:
    """Whether any plan fits at that context."""
    problem = Problem(request, nodes, context_tokens)
    if not (problem.crowded_hosts and not problem.exact):
        try:
            return problem.feasible()
        except SearchTooLargeError:
            pass
    return Problem(request, nodes, context_tokens, share_hosts=False).feasible()


def largest_context(request: PlanRequest, nodes: tuple[NodeCapacity, ...], below_tokens: int) -> int:
    """The largest context below ``below_tokens`` that fits, to the token; 0 where none does.

    A ledger never shrinks as the context grows, so that bisection finds it.
    """
    low, high = 0, below_tokens
    while high - low > 1:
        middle = (low + high) // 2
        if fits(request, nodes, middle):
            low = middle
        else:
            high = middle
    return low


def fewest_bytes_to_add(
    request: PlanRequest, nodes: tuple[NodeCapacity, ...], context_tokens: int
) -> list[NodeDeficit]:
    """Where the fewest bytes of usable memory would have to be added for a plan to fit.

    Over every order up to 8 nodes; beyond, over the 8 roomiest. A forced number of stages is respected. The
    RAM of shared machines is not.
    """
    chosen = sorted(nodes, key=lambda node: -node.usable_bytes)[:_MAX_DEFICIT_NODES]
    problem = Problem(request, tuple(chosen), context_tokens, share_hosts=True)
    options: list[tuple[float, list[NodeDeficit]]] = []
    last = len(problem.at) - 1
    if request.stage_count in {0, 1}:
        for node in chosen:
            needed = problem.whole_bytes(node)
            options.append((max(0, needed - node.usable_bytes), [_deficit(problem, node, (0, last), needed)]))
    if request.stage_count != 1 and last > 1:
        missing = [
            np.maximum(problem.totals_of(node) - node.usable_bytes, 0).astype(np.float64) for node in chosen
        ]
        found = _cheapest_cover(missing, request.stage_count)
        if found is not None:
            total, path = found
            lines = [
                _deficit(problem, chosen[node], (a, b), int(problem.totals_of(chosen[node])[a, b]))
                for node, a, b in path
            ]
            options.append((total, lines))
    if not options:
        return []
    _, lines = min(options, key=lambda option: option[0])
    return [line for line in lines if line.deficit_bytes > 0]


def _deficit(problem: Problem, node: NodeCapacity, stage: tuple[int, int], needed: int) -> NodeDeficit:
    return NodeDeficit(
        node_id=node.node_id,
        first_layer=int(problem.at[stage[0]]),
        end_layer=int(problem.at[stage[1]]),
        needed_bytes=needed,
        usable_bytes=node.usable_bytes,
        deficit_bytes=max(0, needed - node.usable_bytes),
    )


def _cheapest_cover(costs: list[Floats], stage_count: int) -> tuple[float, list[tuple[int, int, int]]] | None:
    """The cheapest ordered cover by at least two distinct nodes, for costs that do not add up over layers."""
    nodes, count = len(costs), costs[0].shape[0]
    below = np.triu(np.ones((count, count), dtype=bool), k=1)
    allowed = [np.where(below, cost, np.inf) for cost in costs]
    best = np.full((1 << nodes, count), np.inf)
    best[0, 0] = 0.0
    ends: list[tuple[float, int]] = []
    for size in range(1, (stage_count or nodes) + 1):
        for members in combinations(range(nodes), size):
            mask = sum(1 << node for node in members)
            for node in members:
                made = (best[mask ^ (1 << node)][:, None] + allowed[node]).min(axis=0)
                np.minimum(best[mask], made, out=best[mask])
            if size == stage_count or (stage_count == 0 and size > 1):
                ends.append((float(best[mask, -1]), mask))
    value, mask = min(ends, default=(np.inf, 0))
    if not np.isfinite(value):
        return None
    path, b = [], count - 1
    while mask:
        node, a = min(
            ((n, a) for n in range(nodes) if mask >> n & 1 for a in range(b)),
            key=lambda choice: best[mask ^ (1 << choice[0]), choice[1]] + allowed[choice[0]][choice[1], b],
        )
        path.append((node, a, b))
        mask, b = mask ^ (1 << node), a
    return value, path[::-1]


def _binding(
    request: PlanRequest, nodes: tuple[NodeCapacity, ...], context_tokens: int, largest: int, missing: int
) -> str:
    if missing == 0:
        return "host_ram"
    if largest == 0:
        return "weights"
    problem = Problem(request, nodes, context_tokens)
    spare = sum(node.usable_bytes for node in nodes)
    if request.stage_count == 0 and len(problem.at) > 2 and problem.nodes:  # noqa: PLR2004  there is a cut point
        head = min(int(problem.totals_of(node)[0, -1]) for node in problem.nodes)
        fixed = request.reserves.runtime_reserve_bytes + request.reserves.buffer_cache_bytes
        fixed += request.reserves.transport_pool_bytes
        if head + (len(nodes) - 1) * fixed <= spare:
            return "granularity"
    return "cache"
