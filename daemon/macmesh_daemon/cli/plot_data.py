"""Predicted speed and room against context: the series behind `daemonctl plan --plot`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from macmesh_placement import Placement

if TYPE_CHECKING:
    from collections.abc import Callable

    from macmesh_placement import Refusal

FIRST_CONTEXT_TOKENS: Final = 1024
#: Points between a context and its double.
POINTS_PER_DOUBLING: Final = 2


@dataclass(frozen=True, slots=True)
class Point:
    """One context that fits, with the plan that was made for it."""

    context_tokens: int
    tokens_per_second: float
    smallest_headroom_bytes: int
    stage_count: int


@dataclass(frozen=True, slots=True)
class Curve:
    """The series of a plot.

    Attributes:
        points: Ascending; at least one.
        last_context_tokens: Where the axis ends: the position limit, or the context asked for.
        largest_context_tokens: The largest context that fits; all above it is infeasible.
    """

    points: tuple[Point, ...]
    last_context_tokens: int
    largest_context_tokens: int

    @property
    def feasible_to_the_end(self) -> bool:
        """Whether nothing needs to be shaded."""
        return self.largest_context_tokens >= self.last_context_tokens


def contexts(last_tokens: int) -> list[int]:
    """Contexts from 1,024 to ``last_tokens``, both included, evenly spread on a logarithmic axis.

    Between the ends they are multiples of 256, the step in which caches are allocated.
    """
    found: list[int] = []
    step = 0
    while True:
        context = round(FIRST_CONTEXT_TOKENS * 2 ** (step / POINTS_PER_DOUBLING) / 256) * 256
        if context >= last_tokens:
            return [*found, last_tokens]
        found.append(context)
        step += 1


def curve(plan_at: Callable[[int], Placement | Refusal], last: Placement | Refusal) -> Curve | None:
    """Plans at each context.

    Args:
        plan_at: Plans at a context, everything else as asked.
        last: The answer at the context where the axis ends. A refusal says how far it can go.

    Returns:
        None where no context fits, or where ``last`` does not say which context it is about.
    """
    if isinstance(last, Placement):
        ends = [(last.context_tokens, last)]
        end = largest = last.context_tokens
    else:
        end, largest, ends = last.context_tokens, last.largest_context_tokens or 0, []
    if not end or not largest:
        return None
    results = [*((c, plan_at(c)) for c in contexts(largest)[: -1 if ends else None]), *ends]
    points = [_point(context, plan) for context, plan in results if isinstance(plan, Placement)]
    return Curve(tuple(points), end, points[-1].context_tokens) if points else None


def _point(context_tokens: int, plan: Placement) -> Point:
    seconds = plan.predicted_decode_seconds
    return Point(
        context_tokens=context_tokens,
        tokens_per_second=1 / seconds if seconds > 0 else 0.0,
        smallest_headroom_bytes=min(stage.ledger.headroom_bytes for stage in plan.stages),
        stage_count=len(plan.stages),
    )
