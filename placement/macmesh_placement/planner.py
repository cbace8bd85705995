"""The planner's entry point: `plan`."""

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.constrained import SearchTooLargeError
from macmesh_placement.ledger import stage_ledger
from macmesh_placement.objective import Outcome, objective_seconds, optimise
from macmesh_placement.problem import MAX_EXACT_NODES, Problem
from macmesh_placement.refusal import refuse_early, refuse_for_size
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import Certificate, Placement, Refusal, StagePlacement

__all__ = ["plan"]


def plan(request: PlanRequest) -> Placement | Refusal:
    """The best placement of the model on the nodes, or why there is none.

    The goals, in order: every stage's ledger closes at full context; the objective is within the request's
    tolerance of the best of all plans; the fewest bytes are loaded; the stages are even. Up to 12 nodes all
    subsets and orders are searched exactly; beyond, the order of the request is kept and the certificate says
    so.

    Args:
        request: What to place where.

    Returns:
        A placement whose certificate anyone can re-add, or a refusal with the deficit and what would fit.
    """
    nodes = tuple(node for node in request.nodes if node.node_id not in request.excluded_node_ids)
    early = refuse_early(request, nodes)
    if early is not None:
        return early
    context_tokens = request.resolved_context_tokens
    problem, outcome, notes = _solve(request, nodes, context_tokens)
    if outcome is None:
        return refuse_for_size(request, nodes, context_tokens)
    return _placement(problem, outcome, notes)


def _solve(
    request: PlanRequest, nodes: tuple[NodeCapacity, ...], context_tokens: int
) -> tuple[Problem, Outcome | None, list[str]]:
    problem = Problem(request, nodes, context_tokens)
    notes = []
    if any(node.bandwidth_gb_per_s == 0 for node in nodes):
        notes.append("nodes of unknown bandwidth were taken to be as slow as the slowest known one")
    if not (problem.crowded_hosts and not problem.exact):
        try:
            return problem, optimise(problem) if problem.nodes else None, notes
        except SearchTooLargeError:
            pass
    notes.append(_ROOMIEST_ONLY)
    problem = Problem(request, nodes, context_tokens, share_hosts=False)
    return problem, optimise(problem) if problem.nodes else None, notes


_ROOMIEST_ONLY = "of each machine that several nodes share, only the roomiest node was considered"


def _placement(problem: Problem, outcome: Outcome, notes: list[str]) -> Placement:
    request, choice = problem.request, outcome.choice
    stages = []
    for index, (node_index, a, b) in enumerate(choice.path):
        node = problem.nodes[node_index]
        first_layer, end_layer = int(problem.at[a]), int(problem.at[b])
        load = choice.load_bytes if len(choice.path) == 1 else problem.loads.of(node_index, a, b)
        stages.append(
            StagePlacement(
                index=index,
                node_id=node.node_id,
                first_layer=first_layer,
                end_layer=end_layer,
                ledger=stage_ledger(
                    request.profile,
                    problem.demand,
                    first_layer=first_layer,
                    end_layer=end_layer,
                    usable_bytes=node.usable_bytes,
                    fused_attention=node.fused_attention,
                ),
                predicted_seconds=problem.seconds.of(node_index, a, b),
                bytes_to_load=round(load),
            )
        )
    exact = problem.exact and _ROOMIEST_ONLY not in notes
    if outcome.unproved_bytes:
        notes = [*notes, f"{round(outcome.unproved_bytes):,} fewer bytes to load are not ruled out"]
    method = (
        "every subset and order of the nodes"
        if problem.exact
        else f"more than {MAX_EXACT_NODES} nodes: the given order of the nodes, any left out"
    )
    return Placement(
        model_id=request.profile.model_id,
        digest=request.profile.digest,
        layer_count=request.profile.layer_count,
        context_tokens=problem.context_tokens,
        slots=request.slots,
        prefill_chunk_tokens=request.prefill_chunk_tokens,
        objective=request.objective,
        stages=tuple(stages),
        predicted_decode_seconds=choice.latency_seconds,
        predicted_slowest_stage_seconds=choice.slowest_seconds,
        bytes_to_load=sum(stage.bytes_to_load for stage in stages),
        certificate=Certificate(
            exact=exact,
            method=method,
            best_objective_seconds=outcome.best_seconds,
            objective_seconds=objective_seconds(problem, choice),
            fewest_bytes_proved=exact and outcome.fewest_bytes_proved,
            notes=tuple(notes),
        ),
    )
