"""Refusals that help: what binds, what would fit, and how much is missing where."""

from dataclasses import replace

from macmesh_placement.binding import binding_constraints
from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.checks import MOST
from macmesh_placement.cover import Cover, Shortfall, shared_hosts
from macmesh_placement.errors import LocalPlanRequestError
from macmesh_placement.feasibility import Attempt, largest_context, taking_part
from macmesh_placement.ledger import stage_ledger
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import HostDeficit, NodeDeficit, Refusal, RefusalKind
from macmesh_placement.tables import boundaries
from macmesh_placement.whatif import MOST_NODES_FOR_CONTEXTS, what_ifs

#: Most nodes for which the fewest bytes to add are sought over every subset and order.
MAX_DEFICIT_NODES = 8
#: Most cells of one table of nodes x boundaries x boundaries: half a gigabyte.
_MOST_TABLE_CELLS = 2**26
#: Most nodes that the search for them takes where a larger number of stages is forced.
MAX_COVER_NODES = 10


def refuse_early(request: PlanRequest, nodes: tuple[NodeCapacity, ...]) -> Refusal | None:
    """The refusal of an ask that no amount of memory could meet, or None.

    Raises:
        LocalPlanRequestError: The ask is beyond what can be computed.
    """
    _require_computable(request)
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


def _require_computable(request: PlanRequest) -> None:
    """Raises where sums would leave 64 bits, or tables the memory of the planner itself."""
    profile = request.profile
    cells = len(request.nodes) * (len(profile.cut_points) + 2) ** 2
    if cells > _MOST_TABLE_CELLS:
        raise LocalPlanRequestError(
            f"{len(request.nodes)} nodes x {len(profile.cut_points)} cut_points are too many to plan"
        )
    total = (
        stage_ledger(
            profile,
            request.demand(),
            first_layer=0,
            end_layer=profile.layer_count,
            usable_bytes=0,
            fused_attention=False,
        ).total_bytes
        + request.reserves.transport_pool_bytes
        + 2 * request.prefill_chunk_tokens * profile.handover_row_bytes
    )
    if total > MOST:
        raise LocalPlanRequestError(
            f"{profile.model_id} at context_tokens {request.resolved_context_tokens} x slots {request.slots}, "
            f"prefill_chunk_tokens {request.prefill_chunk_tokens} would need {total:,} bytes: "
            "more than 2^56 cannot be right"
        )


def refuse_for_size(request: PlanRequest, attempt: Attempt) -> Refusal:
    """The refusal of an ask that these nodes are too small for.

    Args:
        request: The ask; `refuse_early` passed it.
        attempt: The planner without refusals, for what-ifs.
    """
    profile, context = request.profile, request.resolved_context_tokens
    nodes = taking_part(request)
    largest = largest_context(request, attempt, context)
    short, notes = _shortfall(request, nodes, context)
    deficits = _node_deficits(request, nodes, short)
    host_deficits = _host_deficits(request, nodes, short)
    missing = sum(deficit.deficit_bytes for deficit in deficits)
    binding = binding_constraints(request, attempt)
    decides = binding[0] if binding else "memory"
    options = what_ifs(request, attempt, largest)
    if len(nodes) > MOST_NODES_FOR_CONTEXTS:
        notes.append(
            f"more than {MOST_NODES_FOR_CONTEXTS} nodes: changes that only allow a larger context "
            "were not sought"
        )
    uncut = not profile.cut_points and bool(profile.cut_reason) and len(nodes) > 1
    kind: RefusalKind = "unsupported_architecture" if uncut else "does_not_fit"
    if decides == "pins":
        kind = "pins"
    names = {node.node_id: node.label for node in nodes}
    asked = f"{profile.model_id} at a context of {context} x {request.slots}"
    parts = [f"{asked} does not fit: {_DECIDES.get(decides, decides)}."]
    if uncut:
        parts.append(f"It runs only whole, on one node: {profile.cut_reason}.")
    parts += _lacks(deficits, host_deficits, names)
    parts.append(
        f"The largest context that fits is {largest}." if largest else "No context fits on these nodes."
    )
    return Refusal(
        kind=kind,
        message=" ".join(parts),
        context_tokens=context,
        position_limit=profile.position_limit,
        largest_context_tokens=largest,
        binding=decides,
        binding_constraints=tuple(binding),
        bytes_to_add=missing if short is not None else None,
        deficits=deficits,
        host_deficits=host_deficits,
        what_ifs=options,
        notes=tuple(notes),
    )


def refuse_briefly(request: PlanRequest) -> Refusal:
    """As `refuse_for_size`, with nothing but the bytes to add: what a runner-up that does not fit lacks."""
    context, nodes = request.resolved_context_tokens, taking_part(request)
    short, notes = _shortfall(request, nodes, context) if nodes else (None, [])
    deficits = _node_deficits(request, nodes, short)
    return Refusal(
        kind="does_not_fit",
        message=f"{request.profile.model_id} at a context of {context} x {request.slots} does not fit.",
        context_tokens=context,
        position_limit=request.profile.position_limit,
        bytes_to_add=None if short is None else sum(deficit.deficit_bytes for deficit in deficits),
        deficits=deficits,
        host_deficits=_host_deficits(request, nodes, short),
        notes=tuple(notes),
    )


_DECIDES = {
    "pins": "the pinned nodes decide",
    "stage_count": "the forced number of stages decides",
    "host_ram": "the RAM of a machine that several nodes share decides",
    "granularity": "the nodes' memory would do together, but no cut between layers fits",
    "memory": "weights, caches and scratch together exceed the memory by far",
    "weights": "the weights are too large",
    "cache": "the caches of the context decide",
    "attention_scratch": "the score matrix of a prefill step decides (attention_scratch)",
    "prefill_scratch": "the activations of a prefill step decide (prefill_scratch)",
    "sampling": "the logits of all slots decide (sampling)",
    "transport_pool": "the transport buffers decide (transport_pool)",
    "allocator_slack": "the allocator's slack decides (allocator_slack)",
    "runtime_reserve": "the reserve for the process decides (runtime_reserve)",
}


def _lacks(
    deficits: tuple[NodeDeficit, ...], host_deficits: tuple[HostDeficit, ...], names: dict[str, str]
) -> list[str]:
    parts = []
    if deficits:
        lines = [
            f"{names[line.node_id]} lacks {line.deficit_bytes:,} bytes for layers "
            f"{line.first_layer} to {line.end_layer - 1}"
            for line in deficits
        ]
        parts.append(f"At least {sum(line.deficit_bytes for line in deficits):,} bytes are missing: ")
        parts[-1] += ", ".join(lines) + "."
    parts += [
        f"The machine {line.host_id} lacks {line.deficit_bytes:,} bytes of RAM for its nodes."
        for line in host_deficits
    ]
    return parts


def _shortfall(
    request: PlanRequest, nodes: tuple[NodeCapacity, ...], context_tokens: int
) -> tuple[Shortfall | None, list[str]]:
    """The cover that lacks least, over every order of up to 8 nodes, and what was left out."""
    notes = []
    chosen = nodes
    if len(nodes) > MAX_DEFICIT_NODES:
        pinned = request.pinned_node_ids
        ranked = sorted(nodes, key=lambda node: (node.node_id not in pinned, -node.usable_bytes))
        count = max(MAX_DEFICIT_NODES, request.stage_count)
        if count > MAX_COVER_NODES:
            return None, [f"more than {MAX_COVER_NODES} stages: the bytes to add were not sought"]
        kept = {node.node_id for node in ranked[:count]}
        chosen = tuple(node for node in nodes if node.node_id in kept)
        notes.append(
            f"more than {MAX_DEFICIT_NODES} nodes: the bytes to add are those for the {count} roomiest"
        )
    short = Cover(request, chosen, context_tokens).fewest()
    if short is not None:
        places = {node.node_id: index for index, node in enumerate(nodes)}
        moved = [(places[chosen[node].node_id], a, b) for node, a, b in short.stages]
        short = replace(short, stages=moved)
        if not short.hosts_respected:
            notes.append("the bytes to add leave the RAM of shared machines aside")
    return short, notes


def _node_deficits(
    request: PlanRequest, nodes: tuple[NodeCapacity, ...], short: Shortfall | None
) -> tuple[NodeDeficit, ...]:
    if short is None:
        return ()
    at = boundaries(request.profile)
    return tuple(
        NodeDeficit(
            node_id=nodes[node].node_id,
            first_layer=int(at[a]),
            end_layer=int(at[b]),
            needed_bytes=needed,
            usable_bytes=nodes[node].usable_bytes,
            deficit_bytes=needed - nodes[node].usable_bytes,
        )
        for (node, a, b), needed in zip(short.stages, short.needed_bytes, strict=True)
        if needed > nodes[node].usable_bytes
    )


def _host_deficits(
    request: PlanRequest, nodes: tuple[NodeCapacity, ...], short: Shortfall | None
) -> tuple[HostDeficit, ...]:
    if short is None or not short.hosts_respected:
        return ()
    found = []
    for host in shared_hosts(request, nodes):
        needed = sum(
            need
            for (node, _, _), need in zip(short.stages, short.needed_bytes, strict=True)
            if node in host.nodes
        )
        if needed > host.budget_bytes:
            found.append(
                HostDeficit(
                    host_id=host.host_id,
                    needed_bytes=needed,
                    budget_bytes=host.budget_bytes,
                    deficit_bytes=needed - host.budget_bytes,
                )
            )
    return tuple(found)
