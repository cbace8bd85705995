"""Whether an ask fits at all, and the largest context that does."""

from collections.abc import Callable
from dataclasses import replace

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.constrained import SearchTooLargeError
from macmesh_placement.cover import Cover
from macmesh_placement.instance import MAX_EXACT_NODES
from macmesh_placement.problem import Problem
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import Placement

Attempt = Callable[[PlanRequest], Placement | None]
"""The planner without its refusals: a placement, or None where it finds none."""


def taking_part(request: PlanRequest) -> tuple[NodeCapacity, ...]:
    """The nodes that may take part."""
    return tuple(node for node in request.nodes if node.node_id not in request.excluded_node_ids)


def fits(request: PlanRequest, attempt: Attempt, *, share_hosts: bool = True) -> bool:
    """Whether the planner finds a placement for the request at its resolved context.

    Without timing anything, where no timing can decide: up to 12 nodes in a pipeline. Else as the planner
    does.

    Args:
        request: What is asked; at least one node and a context.
        attempt: The planner.
        share_hosts: Respect the RAM of machines that several nodes share.
    """
    if not share_hosts:
        request = replace(request, nodes=tuple(replace(node, host_id="") for node in request.nodes))
    nodes, context = taking_part(request), request.resolved_context_tokens
    if not nodes:
        return False
    if _pipeline_fits(request, nodes, context):
        return True
    tensor = request.allow_tensor_parallel and bool(request.profile.tensor_shards)
    return tensor and attempt(request) is not None


def _pipeline_fits(request: PlanRequest, nodes: tuple[NodeCapacity, ...], context_tokens: int) -> bool:
    if len(nodes) <= MAX_EXACT_NODES:
        try:
            return Cover(request, nodes, context_tokens).possible()
        except SearchTooLargeError:
            return Problem(request, nodes, context_tokens, share_hosts=False).feasible()
    problem = Problem(request, nodes, context_tokens)
    if not (problem.crowded_hosts and not problem.exact):
        try:
            return problem.feasible()
        except SearchTooLargeError:
            pass
    return Problem(request, nodes, context_tokens, share_hosts=False).feasible()


def largest(fitting: Callable[[int], bool], below: int, above: int = 0) -> int:
    """The largest number between the two that fits, or ``above``: what fits goes on fitting below."""
    low, high = above, below
    while high - low > 1:
        middle = (low + high) // 2
        if fitting(middle):
            low = middle
        else:
            high = middle
    return low


def largest_context(request: PlanRequest, attempt: Attempt, below_tokens: int, above_tokens: int = 0) -> int:
    """The largest context below ``below_tokens`` that fits, to the token, or ``above_tokens``.

    A ledger never shrinks as the context grows, so that bisection finds it.
    """
    return largest(
        lambda tokens: fits(at_context(request, tokens), attempt),
        below_tokens,
        above_tokens,
    )


def at_context(request: PlanRequest, context_tokens: int) -> PlanRequest:
    """The request at another context; a decode context beyond it is cut to it."""
    decode = min(request.decode_context_tokens, context_tokens)
    return replace(request, context_tokens=context_tokens, decode_context_tokens=decode)
