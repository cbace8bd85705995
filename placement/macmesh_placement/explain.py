"""Why the others lost: the runner-up plans, or the nearest misses of a refusal."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

from macmesh_placement.feasibility import taking_part
from macmesh_placement.planner import attempt
from macmesh_placement.proportional import placed_in_proportion
from macmesh_placement.refusal import refuse_briefly
from macmesh_placement.request import Objective, PlanRequest
from macmesh_placement.result import NodeDeficit, Placement, Refusal
from macmesh_placement.terms import terms_of

#: Most nodes for which every number of stages and every node is tried.
MOST_NODES = 8
#: Within this share of the best every plan that fits is an equal: the one that loads the fewest bytes wins.
_ANY_SPEED = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A plan that was not chosen.

    Attributes:
        label: What is different, such as ``"2 stages"``.
        reason: Why it lost, one sentence with numbers.
        placement: The plan; None where it does not fit.
        refusal: Why it does not fit; None where it does.
    """

    label: str
    reason: str
    placement: Placement | None
    refusal: Refusal | None

    def to_json(self) -> dict[str, Any]:
        """The alternative as a JSON object."""
        return {
            "label": self.label,
            "reason": self.reason,
            "placement": None if self.placement is None else self.placement.to_json(),
            "refusal": None if self.refusal is None else self.refusal.to_json(),
        }


def alternatives(request: PlanRequest, result: Placement | Refusal) -> tuple[Alternative, ...]:
    """The plans that lost against ``result``, each once, the best first and those that do not fit last.

    For a placement: the best plan of every other number of stages, without each node that is used, with each
    that is not, for the other objectives, split over equal nodes, closest to what is loaded now, and the split
    in proportion to memory. For a refusal of size: what comes nearest with each number of stages, and the
    proportional split. Each is really planned; beyond 8 nodes only the other objectives, the closest and the
    proportional split are.

    Args:
        request: What was asked.
        result: What the planner answered.
    """
    if isinstance(result, Placement):
        return _losers(request, result)
    return _misses(request) if result.bytes_to_add is not None or result.deficits else ()


def _losers(request: PlanRequest, chosen: Placement) -> tuple[Alternative, ...]:
    seen = {_key(chosen)}
    fitting: list[tuple[float, Alternative]] = []
    failing: list[tuple[int, Alternative]] = []
    missed: set[tuple[NodeDeficit, ...]] = set()
    for label, changed in _variants(request, chosen):
        placement = attempt(changed)
        if placement is None:
            refusal = refuse_briefly(changed)
            if refusal.deficits not in missed:
                missed.add(refusal.deficits)
                failing.append((refusal.bytes_to_add or 0, _failed(request, label, refusal)))
        elif _key(placement) not in seen:
            seen.add(_key(placement))
            seconds = terms_of(placement, request).objective_seconds
            fitting.append((seconds, _lost(request, chosen, label, placement)))
    by_hand = placed_in_proportion(request)
    if isinstance(by_hand, Refusal):
        failing.append((by_hand.bytes_to_add or 0, _failed(request, _BY_HAND, by_hand)))
    elif by_hand is not None and _key(by_hand) not in seen:
        seconds = terms_of(by_hand, request).objective_seconds
        fitting.append((seconds, _lost(request, chosen, _BY_HAND, by_hand)))
    fitting.sort(key=lambda pair: (pair[0], pair[1].label))
    failing.sort(key=lambda pair: (pair[0], pair[1].label))
    return tuple(alternative for _, alternative in [*fitting, *failing])


_BY_HAND = "layers in proportion to memory"


def _key(placement: Placement) -> tuple[object, ...]:
    stages = [(stage.node_id, stage.first_layer, stage.end_layer) for stage in placement.stages]
    return (placement.parallelism, *stages)


def _variants(request: PlanRequest, chosen: Placement) -> Iterator[tuple[str, PlanRequest]]:
    """Each change with its label; a change that contradicts the request's pins is no variant."""
    nodes = taking_part(request)
    if len(nodes) <= MOST_NODES:
        yield from _other_counts(request, len(chosen.stages))
        yield from _other_nodes(request, {stage.node_id for stage in chosen.stages})
    for objective in get_args(Objective):
        if objective != request.objective:
            yield f"for {objective}", replace(request, objective=objective)
    if any(node.resident_layers or node.holds_embedding or node.holds_head for node in nodes):
        yield "closest to what is loaded", replace(request, tolerance=_ANY_SPEED)
    if chosen.parallelism == "pipeline":
        yield from _tensor_only(request)
    else:
        yield "pipeline", replace(request, allow_tensor_parallel=False)


def _other_counts(request: PlanRequest, used: int) -> Iterator[tuple[str, PlanRequest]]:
    most = min(len(taking_part(request)), len(request.profile.cut_points) + 1)
    pinned = len(request.pinned_node_ids)
    one_node = bool(request.head_node_id) and request.head_node_id == request.tail_node_id
    for count in range(max(1, pinned), (1 if one_node else most) + 1):
        if count != used:
            label = "1 stage" if count == 1 else f"{count} stages"
            yield label, replace(request, stage_count=count)


def _other_nodes(request: PlanRequest, used: set[str]) -> Iterator[tuple[str, PlanRequest]]:
    pinned = request.pinned_node_ids
    one_node = bool(request.head_node_id) and request.head_node_id == request.tail_node_id
    full = one_node or (request.stage_count and len(pinned) >= request.stage_count)
    nodes = taking_part(request)
    for node in nodes:
        if node.node_id in used and node.node_id not in pinned and len(nodes) > 1:
            without = request.excluded_node_ids | {node.node_id}
            yield f"without {node.label}", replace(request, excluded_node_ids=without)
        elif node.node_id not in used and not full:
            required = request.required_node_ids | {node.node_id}
            yield f"with {node.label}", replace(request, required_node_ids=required)


def _tensor_only(request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    """Tensor parallelism alone: a model that cannot be cut, on more than one node."""
    whole = replace(request.profile, cut_points=(), cut_reason="")
    for shard in request.profile.tensor_shards:
        fixed = request.stage_count in {0, shard.ways} and len(request.pinned_node_ids) <= shard.ways
        if fixed and 1 < shard.ways <= len(taking_part(request)):
            yield (
                f"every layer split over {shard.ways} nodes",
                replace(request, profile=whole, stage_count=shard.ways, allow_tensor_parallel=True),
            )


def _lost(request: PlanRequest, chosen: Placement, label: str, placement: Placement) -> Alternative:
    theirs = terms_of(placement, request).objective_seconds
    ours = terms_of(chosen, request).objective_seconds
    more_bytes = placement.bytes_to_load - chosen.bytes_to_load
    mixed = over_rdma(chosen, request) and not over_rdma(placement, request)
    reason = _reason(request, (ours, theirs), more_bytes, placement, mixed_links=mixed)
    return Alternative(label=label, reason=reason, placement=placement, refusal=None)


def _reason(
    request: PlanRequest,
    seconds: tuple[float, float],
    more_bytes: int,
    placement: Placement,
    *,
    mixed_links: bool,
) -> str:
    """Why it lost: too slow, slower links, more to load, or neither better."""
    ours, theirs = seconds
    share = theirs / ours - 1 if ours else 0.0
    times = f"{theirs * 1000:.1f} against {ours * 1000:.1f} {_UNITS[request.objective]}"
    change = f"{abs(share):.1%}".replace("%", " %") + (" slower" if share > 0 else " faster") + f": {times}"
    if forbidden := _forbidden(request, placement):
        return f"{change}, but {forbidden}"
    if share > request.tolerance:
        return change
    equal = f"equal within {request.tolerance:.0%}".replace("%", " %")
    if mixed_links:
        return f"{equal}, but not all of its hops are over RDMA"
    if more_bytes > 0:
        return f"{equal}, but loads {more_bytes / 1e9:.1f} GB more"
    if share > 0:
        return f"{equal} and loads no less; {change}"
    return f"{equal} in speed and bytes to load; the chosen plan goes on as it runs now, or is more even"


def over_rdma(placement: Placement, request: PlanRequest) -> bool:
    """Whether it has no hop, or all its hops are over RDMA, the way back included."""
    used = [stage.node_id for stage in placement.stages]
    rdma = {frozenset(link.node_ids) for link in request.links if link.kind == "rdma"}
    following = [*used[1:], used[0]]
    hops = {frozenset(pair) for pair in zip(used, following, strict=True)}
    return len(used) == 1 or hops <= rdma


_UNITS = {
    "latency": "ms per token",
    "throughput": "ms per token in the slowest stage",
    "balanced": "ms between two tokens of a request",
}


def _forbidden(request: PlanRequest, placement: Placement) -> str:
    """What of the request the alternative disregards."""
    if placement.parallelism == "tensor" and not request.allow_tensor_parallel:
        return "tensor parallelism was not allowed"
    if request.stage_count not in {0, len(placement.stages)}:
        return f"{request.stage_count} stages were asked for"
    return ""


def _failed(request: PlanRequest, label: str, refusal: Refusal) -> Alternative:
    return Alternative(label=label, reason=_missing(request, refusal), placement=None, refusal=refusal)


def _missing(request: PlanRequest, refusal: Refusal) -> str:
    names = {node.node_id: node.label for node in request.nodes}
    parts = [f"{_amount(line.deficit_bytes)} missing on {names[line.node_id]}" for line in refusal.deficits]
    parts += [
        f"{_amount(line.deficit_bytes)} of RAM missing on machine {line.host_id}"
        for line in refusal.host_deficits
    ]
    return f"does not fit: {', '.join(parts)}" if parts else "does not fit: no such plan is possible"


def _amount(size_bytes: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if size_bytes >= limit:
            return f"{size_bytes / limit:.1f} {unit}"
    return f"{size_bytes} bytes"


def _misses(request: PlanRequest) -> tuple[Alternative, ...]:
    found: list[tuple[tuple[int, int], Alternative]] = []
    seen: set[tuple[NodeDeficit, ...]] = set()
    variants = []
    if len(taking_part(request)) <= MOST_NODES:
        variants = [*_other_counts(request, request.stage_count)]
    refusals: list[tuple[str, Placement | Refusal | None]] = [
        (label, attempt(changed) or refuse_briefly(changed)) for label, changed in variants
    ]
    refusals.append((_BY_HAND, placed_in_proportion(request)))
    for label, miss in refusals:
        if isinstance(miss, Refusal) and miss.bytes_to_add is not None and miss.deficits not in seen:
            seen.add(miss.deficits)
            ram = sum(line.deficit_bytes for line in miss.host_deficits)
            found.append(((ram, miss.bytes_to_add), _failed(request, label, miss)))
        elif isinstance(miss, Placement):
            reason = f"fits, but {_forbidden(request, miss)}"
            found.append(((0, 0), Alternative(label=label, reason=reason, placement=miss, refusal=None)))
    found.sort(key=lambda pair: pair[0])
    return tuple(alternative for _, alternative in found)
