"""Whether a plan that serves is moved to nodes that are free: by policy, and never for nothing.

What was lost is replaced at once, whatever this says; this is about what was gained. A plan with more nodes is worked
out, not guessed, and compared with the one that runs by what the planner predicts for both.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .messages import Deployment, Epoch, Plan
    from .settings import ClusterSettings

Capacity = frozenset[tuple[str, int]]
"""Nodes that may serve, each with the bytes that it may use."""

_REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class Gain:
    """A reason to work a plan out that is taken only where it pays."""

    reason: str


class Rebalance:
    """Which gains were looked into under the plan that serves, and what came of it.

    A set of nodes is looked into once for each plan: what did not pay with more nodes does not pay with fewer. A
    coordinator that took a running plan over looks into the free nodes once more.
    """

    def __init__(self, settings: "ClusterSettings") -> None:
        self._settings = settings
        self._epoch: Epoch | None = None
        self._judged: list[Capacity] = []
        self._gained: Capacity = frozenset()
        self._since = 0.0
        #: Why the plan stays though nodes are free; "" where none is, or nothing was found out yet.
        self.kept_reason = ""

    def planned(self, plan: "Plan", capacity: Capacity) -> None:
        """A plan was made of that."""
        self._epoch = plan.epoch
        self._judged = [capacity]
        self._gained, self.kept_reason = frozenset(), ""

    def wish(self, plan: "Plan", capacity: Capacity, now: float) -> Gain | None:
        """The reason to look for a better plan than this one, which serves; None where there is none now.

        Nodes that come one after another are awaited as joiners are: `join_quiet_seconds`.
        """
        if plan.epoch != self._epoch:
            own = frozenset((node_id, size) for node_id, size in capacity if node_id in plan.node_ids)
            self.planned(plan, own)
        if all(node_id in plan.node_ids for node_id, _ in capacity):
            self.kept_reason = ""
        if any(capacity <= judged for judged in self._judged):
            self._gained = frozenset()
            return None
        if self._settings.rebalance == "never":
            self.kept(capacity, "the policy rebalance is never")
            return None
        if capacity != self._gained:
            self._gained, self._since = capacity, now
        if now - self._since < self._settings.join_quiet_seconds:
            return None
        news = sorted({node_id for node_id, _ in capacity - self._judged[0]})
        return Gain(f"there is more to plan with: {', '.join(news)}")

    def kept(self, capacity: Capacity, reason: str) -> None:
        """What was looked into with this capacity came to nothing."""
        self._judged = [*self._judged[-_REMEMBERED:], capacity]
        self._gained, self.kept_reason = frozenset(), reason

    def why_kept(self, current: "Deployment", found: "Deployment") -> str:
        """Why the plan that runs stays in spite of the one found; "" where the found one pays."""
        if _layout(current) == _layout(found):
            return "the plan that runs is the best one with these nodes, too"
        if self._settings.rebalance == "always" or found.context_tokens > current.context_tokens:
            return ""
        before, after = _cost_seconds(current, found)
        least = self._settings.rebalance_min_gain
        if before <= 0 or after <= 0:
            return "nothing is predicted of the plans' speed"
        gain = 1 - after / before
        if gain >= least:
            return ""
        return (
            f"the best plan is predicted to take {after * 1000:.2f} ms a token instead of {before * 1000:.2f} ms, "
            f"which is less than the {least:.0%} that a move must gain"
        )


def _layout(deployment: "Deployment") -> tuple[object, ...]:
    stages = tuple((s.node_id, s.first_layer, s.end_layer) for s in deployment.stages)
    return (deployment.context_tokens, deployment.slots, deployment.parallelism, stages)


def _cost_seconds(current: "Deployment", found: "Deployment") -> tuple[float, float]:
    """By the objective where both tell it, else by what one decoded token takes."""
    pair = (current.predicted_objective_seconds, found.predicted_objective_seconds)
    return pair if min(pair) > 0 else (current.predicted_decode_seconds, found.predicted_decode_seconds)
