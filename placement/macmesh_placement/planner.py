"""The planner's entry point: `plan`."""

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.constrained import SearchTooLargeError
from macmesh_placement.costs import stage_seconds
from macmesh_placement.instance import MAX_EXACT_NODES
from macmesh_placement.ledger import stage_ledger
from macmesh_placement.objective import Outcome, objective_seconds, optimise
from macmesh_placement.problem import Choice, Problem
from macmesh_placement.refusal import refuse_early, refuse_for_size
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import Certificate, Placement, Refusal, StagePlacement
from macmesh_placement.tensor import retimed, tensor_ledger

__all__ = ["plan"]


def plan(request: PlanRequest) -> Placement | Refusal:
    """The best placement of the model on the nodes, or why there is none.

    The goals, in order: every stage's ledger closes at full context; the objective is within the request's
    tolerance of the best of all plans; where the cluster has RDMA links, all hops are over them; the fewest
    bytes are loaded; what runs now goes on; the stages are even. Up to 12 nodes all subsets and orders are
    searched exactly; beyond, one order that follows the links, and the certificate says so.

    Args:
        request: What to place where.

    Returns:
        A placement whose certificate anyone can re-add, or a refusal with the deficit and what would fit.
    """
    nodes = tuple(node for node in request.nodes if node.node_id not in request.excluded_node_ids)
    early = refuse_early(request, nodes)
    if early is not None:
        return early
    return attempt(request) or refuse_for_size(request, attempt)


def attempt(request: PlanRequest) -> Placement | None:
    """As `plan`, of a request that names nodes and a context; None where nothing fits."""
    nodes = tuple(node for node in request.nodes if node.node_id not in request.excluded_node_ids)
    problem, outcome, notes = _solve(request, nodes, request.resolved_context_tokens)
    return None if outcome is None else _placement(problem, outcome, notes)


def _solve(
    request: PlanRequest, nodes: tuple[NodeCapacity, ...], context_tokens: int
) -> tuple[Problem, Outcome | None, list[str]]:
    problem = Problem(request, nodes, context_tokens)
    notes = _assumptions(request, nodes)
    if not (problem.crowded_hosts and not problem.exact):
        try:
            return problem, optimise(problem) if problem.nodes else None, notes
        except SearchTooLargeError:
            pass
    notes.append(_ROOMIEST_ONLY)
    problem = Problem(request, nodes, context_tokens, share_hosts=False)
    return problem, optimise(problem) if problem.nodes else None, notes


_ROOMIEST_ONLY = "of each machine that several nodes share, only the roomiest node was considered"


def _assumptions(request: PlanRequest, nodes: tuple[NodeCapacity, ...]) -> list[str]:
    notes = []
    if any(node.bandwidth_gb_per_s == 0 for node in nodes):
        notes.append("nodes of unknown bandwidth were taken to be as slow as the slowest known one")
    known = [node for node in nodes if node.flops_tflops]
    if known and len(known) < len(nodes):
        notes.append("nodes of unknown compute were taken to be as slow as the slowest known one")
    if request.prefill_share and not known:
        notes.append("no node's compute is known: prompt tokens were timed by memory bandwidth alone")
    return notes


def _stages(problem: Problem, choice: Choice) -> tuple[StagePlacement, ...]:
    request = problem.request
    hops = problem.hop_seconds(choice.path)
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
                hop_seconds=hops[index],
            )
        )
    return tuple(stages)


def _tensor_stages(problem: Problem, choice: Choice) -> tuple[StagePlacement, ...]:
    found = choice.tensor
    if found is None:
        raise ValueError("not a tensor-parallel plan")
    profile = problem.profile
    return tuple(
        StagePlacement(
            index=index,
            node_id=problem.nodes[node].node_id,
            first_layer=0,
            end_layer=profile.layer_count,
            ledger=tensor_ledger(profile, found.shard, problem.demand, problem.nodes[node]),
            predicted_seconds=found.stage_seconds[index],
            bytes_to_load=found.loads[index],
            hop_seconds=found.reduction_seconds if index == 0 else 0.0,
        )
        for index, node in enumerate(found.nodes)
    )


def _token_seconds(problem: Problem, choice: Choice, decode_share: float) -> float:
    """Seconds of one token of the plan, for another mixture of tokens."""
    mixture = problem.mixture.with_share(decode_share)
    if choice.tensor is not None:
        return retimed(problem.request, problem.nodes, problem.rates, choice.tensor, mixture).latency_seconds
    seconds = stage_seconds(problem.profile, problem.rates, mixture)
    total = sum(seconds.of(*stage) for stage in choice.path)
    if len(choice.path) > 1:
        total += sum(
            problem.links.hops(problem.request, mixture).of_path([node for node, _, _ in choice.path])
        )
    return total


def _certificate_notes(outcome: Outcome, notes: list[str]) -> tuple[str, ...]:
    found = [*notes]
    if outcome.unproved_seconds:
        found.append(
            f"the token's way back was not searched in full: {outcome.unproved_seconds * 1000:.4f} ms less are "
            "not ruled out"
        )
    if not outcome.preference_proved:
        found.append("whether hops over RDMA alone are possible was not searched in full")
    if outcome.unproved_bytes:
        found.append(f"{round(outcome.unproved_bytes):,} fewer bytes to load are not ruled out")
    return tuple(found)


def _placement(problem: Problem, outcome: Outcome, notes: list[str]) -> Placement:
    request, choice = problem.request, outcome.choice
    exact = problem.exact and _ROOMIEST_ONLY not in notes and not outcome.unproved_seconds
    stages = _stages(problem, choice) if choice.tensor is None else _tensor_stages(problem, choice)
    method = (
        "every subset and order of the nodes"
        if problem.exact
        else f"more than {MAX_EXACT_NODES} nodes: one order of the nodes that follows their links, any left out"
    )
    return Placement(
        model_id=request.profile.model_id,
        digest=request.profile.digest,
        layer_count=request.profile.layer_count,
        context_tokens=problem.context_tokens,
        slots=request.slots,
        prefill_chunk_tokens=request.prefill_chunk_tokens,
        objective=request.objective,
        stages=stages,
        predicted_decode_seconds=_token_seconds(problem, choice, 1.0),
        predicted_slowest_stage_seconds=choice.slowest_seconds,
        bytes_to_load=sum(stage.bytes_to_load for stage in stages),
        kv_bits=request.profile.kv_bits,
        certificate=Certificate(
            exact=exact,
            method=method,
            best_objective_seconds=outcome.best_seconds,
            objective_seconds=objective_seconds(problem, choice),
            fewest_bytes_proved=exact and outcome.preference_proved and outcome.unproved_bytes == 0,
            notes=_certificate_notes(outcome, notes),
        ),
        parallelism="pipeline" if choice.tensor is None else "tensor",
        predicted_prefill_seconds_per_token=_token_seconds(problem, choice, 0.0),
    )
