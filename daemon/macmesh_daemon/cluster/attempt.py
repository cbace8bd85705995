"""One try at a plan, and what remains of one that was refused."""

from dataclasses import dataclass, field
from typing import Literal

from .messages import NodeFacts, Plan, WantedModel

Means = frozenset[tuple[str, NodeFacts | None]]
"""What a plan can be made of: the members that may be used and their machines."""


@dataclass(slots=True)
class Attempt:
    """One try at a plan.

    Attributes:
        request_id: Of its ComputePlan.
        wanted: What it is for.
        since: When its present phase began.
        phase: "computing", "preparing" (asking for promises) or "storing" (promised by all its members).
        plan: Once computed.
        promised: Members that have promised it.
        busy_until: Members that are being asked, and until when.
        is_last_resort: Nothing serves and nothing fitted without the nodes that come and go: they are taken, too.
        is_optional: The plan that runs would do; the one found is taken only where it pays.
        read_ahead_seconds: As in PrepareRequest: the plan that runs serves meanwhile.
    """

    request_id: int
    wanted: WantedModel
    means: Means
    since: float
    phase: Literal["computing", "preparing", "storing"] = "computing"
    plan: Plan | None = None
    promised: set[str] = field(default_factory=set)
    busy_until: dict[str, float] = field(default_factory=dict)
    is_last_resort: bool = False
    is_optional: bool = False
    read_ahead_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """The planner's answer that nothing fits.

    Attributes:
        wanted: What was asked for.
        means: Of what.
        at: When.
        reason: UPPER_SNAKE.
        refusal_json: The planner's own words and figures.
    """

    wanted: WantedModel
    means: Means
    at: float
    reason: str
    refusal_json: str
