"""When a new plan is made, and its way into the document: compute, PREPARE, store."""

import dataclasses
from typing import TYPE_CHECKING

from .attempt import Attempt, Means, Refusal
from .effects import ComputePlan, TransportFailure
from .flaps import HoldDown
from .messages import (
    Deployment,
    Epoch,
    Member,
    NodeFacts,
    Plan,
    PrepareRequest,
    PrepareResponse,
    Request,
    WantedModel,
)
from .rebalance import Capacity, Gain, Rebalance
from .rollout import Problem, group_transport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .context import Context
    from .coordinator import Coordinator
    from .messages import ClusterDocument
    from .rollout import Rollout
    from .view import ServingState

Wiring = frozenset[tuple[str, str]]
"""Which members are not known to be dead, and what each told of its RDMA devices."""


class PlanMaker:
    """Replaces the committed plan where it does not answer what is wanted, or cannot go on.

    A refused plan changes nothing: what runs goes on, `wanted` stays, and the planner is asked again when the
    means have changed.
    """

    def __init__(self, context: "Context", coordinator: "Coordinator", rollout: "Rollout") -> None:
        self._context = context
        self._coordinator = coordinator
        self._rollout = rollout
        self._attempt: Attempt | None = None
        self._refusal: Refusal | None = None
        self._excluded_until: dict[str, float] = {}
        self._wish_since: float | None = None
        self._hold_down = HoldDown(context.settings)
        self.rebalance = Rebalance(context.settings)
        self._transport_failures: dict[tuple[frozenset[str], str], str] = {}
        self._failed_wiring: Wiring = frozenset()
        self._failed_epoch: Epoch | None = None

    @property
    def plan_to_store(self) -> Plan | None:
        """A plan that all its members have promised and that belongs into the document."""
        attempt = self._attempt
        return attempt.plan if attempt is not None and attempt.phase == "storing" else None

    @property
    def refusal_json(self) -> str:
        """The last refusal; "" where the plan stands."""
        return self._refusal.refusal_json if self._refusal else ""

    @property
    def refusal_reason(self) -> str:
        """Its reason; "" where the plan stands."""
        return self._refusal.reason if self._refusal else ""

    @property
    def serving_state(self) -> "ServingState":
        """What the cluster is doing for its users."""
        document = self._coordinator.document
        if document.plan is not None and document.plan.deployments:
            if self._rollout.problem() is not None:
                if self._attempt is not None:
                    return "planning"
                return "refused" if self._refusal is not None else "degraded"
            return "ready" if self._rollout.is_ready else "loading"
        if document.wanted is None:
            return "idle"
        return "refused" if self._refusal is not None and self._attempt is None else "planning"

    def forgive(self) -> None:
        """Forget refusals, exclusions and failures: a person asked anew."""
        self._refusal = None
        self._excluded_until = {}
        self._hold_down = HoldDown(self._context.settings)
        self._transport_failures = {}
        self._rollout.failures.forgive()
        self._coordinator.flaps.forgive()

    def advance(self) -> None:
        """Begin, go on with or give up a try. Called with a committed document."""
        document = self._coordinator.document
        attempt = self._attempt
        if self._transport_failures and self._failed_wiring != self._wiring():
            self._transport_failures = {}
        if attempt is not None and attempt.plan is not None and document.plan == attempt.plan:
            self._hold_down.planned(self._context.now)
            self.rebalance.planned(attempt.plan, _capacity(attempt.means))
            self._attempt = attempt = None
        wish = self._wish()
        if wish is None or document.wanted is None:
            self._attempt = self._refusal = self._wish_since = None
            return
        is_optional = isinstance(wish, Gain)
        if is_optional:
            self._refusal = None
        if attempt is not None and (attempt.wanted != document.wanted or attempt.is_optional != is_optional):
            self._attempt = attempt = None
        if self._wish_since is None:
            self._wish_since = self._context.now
        if attempt is None:
            self._begin(document.wanted, wish)
        elif attempt.phase == "computing":
            if self._context.now - attempt.since > self._context.settings.compute_timeout_seconds:
                self._refuse(attempt, "PLANNER_TIMEOUT", "")
        else:
            self._pursue(attempt)

    def on_computed(self, request_id: int, deployment: Deployment | None) -> None:
        """Take the planner's plan and ask its members for their promises."""
        attempt = self._computing(request_id)
        if attempt is None:
            return
        if deployment is None or not deployment.stages:
            self._refuse(attempt, "NO_PLAN", "")
            return
        chosen = [stage.node_id for stage in deployment.stages]
        if len(set(chosen)) != len(chosen) or not {node_id for node_id, _ in attempt.means} >= set(chosen):
            self._refuse(attempt, "INVALID_PLAN", "")
            return
        if not {
            member.node_id for member in self._usable(attempt.wanted, last_resort=attempt.is_last_resort)
        } >= set(chosen):
            self._attempt = None  # a member went while the planner worked: compute again
            return
        current = self._coordinator.document.plan
        if attempt.is_optional and current is not None and current.deployments:
            kept = self.rebalance.why_kept(current.deployments[0], deployment)
            if kept:
                self._keep(attempt, kept)
                return
        plan = Plan(self._coordinator.next_epoch(), (deployment,), attempt.wanted)
        attempt.plan = plan
        attempt.phase = "preparing"
        attempt.since = self._context.now
        self._context.announce("plan computed", epoch=str(plan.epoch), nodes=list(plan.node_ids))

    def on_refused(self, request_id: int, reason: str, refusal_json: str) -> None:
        """Take the planner's refusal."""
        attempt = self._computing(request_id)
        if attempt is not None:
            self._refuse(attempt, reason, refusal_json)

    def on_prepare_response(self, peer: str, response: PrepareResponse) -> None:
        """Count a promise; a refusal drops the node and the try."""
        attempt = self._attempt
        if attempt is None or attempt.plan is None or attempt.phase != "preparing":
            return
        if response.epoch != attempt.plan.epoch or peer not in attempt.plan.node_ids:
            return
        if response.promised:
            attempt.promised.add(peer)
        else:
            self._context.announce("prepare refused", node_id=peer, reason=response.reason)
            self._drop({peer})

    def on_request_failed(self, peer: str, request: Request) -> None:
        """A PREPARE came to nothing: it is sent again a little later."""
        attempt = self._attempt
        if attempt is not None and isinstance(request, PrepareRequest) and request.plan == attempt.plan:
            attempt.busy_until[peer] = self._context.now + self._context.settings.heartbeat_seconds

    def _wish(self) -> "str | Problem | Gain | None":
        """Why there should be another plan; None where there should not."""
        document = self._coordinator.document
        if document.wanted is None:
            return None
        if document.plan is None or document.plan.wanted != document.wanted:
            return "another model is wanted"
        problem = self._rollout.problem()
        if problem is not None or self._coordinator.is_going:
            return problem
        return self._wish_beside(document, document.plan, document.wanted)

    def _wish_beside(
        self, document: "ClusterDocument", plan: Plan, wanted: WantedModel
    ) -> "str | Gain | None":
        """The same, where nothing stands in the way of the plan."""
        draining = [m.node_id for m in document.members if m.draining and m.node_id in plan.node_ids]
        if draining:
            return f"{', '.join(draining)} is being drained"
        if not plan.deployments or not self._rollout.is_ready:
            return None
        capacity = _capacity((m.node_id, self._coordinator.facts_of(m.node_id)) for m in self._usable(wanted))
        return self.rebalance.wish(plan, capacity, self._context.now)

    @property
    def _is_serving(self) -> bool:
        """Whether the plan that runs serves on while another is made."""
        plan = self._coordinator.document.plan
        return plan is not None and bool(plan.deployments) and self._rollout.problem() is None

    def _begin(self, wanted: WantedModel, wish: "str | Problem | Gain") -> None:
        now = self._context.now
        if isinstance(wish, Problem):
            if now < wish.not_before:
                return
            self._rollout.blame(wish)
            if wish.excludes:
                self._exclude(wish.culprit)
            if wish.transport:
                self._note_transport_failure(wish.transport)
        is_serving = self._is_serving
        refusal = self._refusal
        is_last_resort = refusal is not None and refusal.wanted == wanted and not is_serving
        members = self.means(wanted, last_resort=is_last_resort)
        means = frozenset((member.node_id, member.facts) for member in members)
        if refusal is not None and refusal.wanted == wanted:
            if not self._may_ask_again(refusal, means, is_serving=is_serving):
                return
        elif not self._is_everybody_judged():
            return
        is_optional = isinstance(wish, Gain)
        if is_optional and not self._hold_down.is_over(now):
            return
        request_id = self._context.next_request_id()
        read_ahead_seconds = self._context.settings.read_ahead_seconds if is_serving else 0.0
        self._attempt = Attempt(
            request_id,
            wanted,
            means,
            now,
            is_last_resort=is_last_resort,
            is_optional=is_optional,
            read_ahead_seconds=read_ahead_seconds,
        )
        self._context.announce(
            "planning",
            reason=wish if isinstance(wish, str) else wish.reason,
            nodes=sorted(m.node_id for m in members),
        )
        if not members:
            self._refuse(self._attempt, "NO_ELIGIBLE_NODE", "")
            return
        plan = self._coordinator.document.plan
        self._context.emit(ComputePlan(request_id, wanted, members, plan, self.failures_to_heed()))

    def _may_ask_again(self, refusal: Refusal, means: Means, *, is_serving: bool) -> bool:
        """Whether the planner is asked again after it refused.

        Where nothing is served, a node that is back ends the wait at once: nothing can be interrupted for nothing.
        """
        now = self._context.now
        if means == refusal.means:
            return False
        is_due = now - refusal.at >= self._context.settings.refusal_retry_seconds
        if is_serving:
            return is_due and self._hold_down.is_over(now)
        return is_due or bool({n for n, _ in means} - {n for n, _ in refusal.means})

    def failures_to_heed(self) -> tuple[TransportFailure, ...]:
        """Where the next plan must do without a transport."""
        return tuple(
            TransportFailure(node_ids, reason, transport)
            for (node_ids, transport), reason in self._transport_failures.items()
        )

    @property
    def transport_failures(self) -> dict[tuple[frozenset[str], str], str]:
        """Why a transport failed, by nodes and transport; as long as no member and no device changes."""
        return dict(self._transport_failures)

    def _note_transport_failure(self, reason: str) -> None:
        """Note it once for each plan: what changed after the plan failed has not been tried."""
        plan = self._coordinator.document.plan
        if plan is None or plan.epoch == self._failed_epoch:
            return
        self._failed_epoch = plan.epoch
        transport = group_transport(plan)
        self._transport_failures[frozenset(plan.node_ids), transport] = reason
        self._failed_wiring = self._wiring()
        self._context.announce(
            "transport failed", nodes=list(plan.node_ids), transport=transport, reason=reason
        )

    def _wiring(self) -> Wiring:
        found = set()
        for member in self._coordinator.document.members:
            if self._coordinator.liveness(member.node_id) != "dead":
                facts = self._coordinator.facts_of(member.node_id)
                found.add((member.node_id, facts.rdma_json if facts else ""))
        return frozenset(found)

    def _is_everybody_judged(self) -> bool:
        """Whether each member is known to be there or gone, or was given the time to prove it."""
        settings = self._context.settings
        patience = settings.dead_after_seconds * (1 + self._context.health_score)
        if self._wish_since is not None and self._context.now - self._wish_since >= patience:
            return True
        verdicts = (
            self._coordinator.liveness(member.node_id) for member in self._coordinator.document.members
        )
        return all(verdict not in {"suspect", "unknown"} for verdict in verdicts)

    def means(self, wanted: WantedModel, *, last_resort: bool = False) -> tuple[Member, ...]:
        """The members that may be used, with their machines as of now."""
        return tuple(
            dataclasses.replace(member, facts=self._coordinator.facts_of(member.node_id))
            for member in self._usable(wanted, last_resort=last_resort)
        )

    def _usable(self, wanted: WantedModel, *, last_resort: bool = False) -> "Iterator[Member]":
        """The members that may be used, as the document has them.

        Args:
            wanted: For what.
            last_resort: Those that come and go are used, too.
        """
        now = self._context.now
        watch = self._coordinator.watch
        digest = wanted.model.digest if wanted.model else ""
        return (
            member
            for member in self._coordinator.document.members
            if self._coordinator.liveness(member.node_id) == "alive"
            and (
                not watch.not_planned_reason(member.node_id)
                or (last_resort and watch.is_only_damped(member.node_id))
            )
            and now >= self._excluded_until.get(member.node_id, now)
            and not self._rollout.failures.is_quarantined(member.node_id, digest, now)
        )

    def _computing(self, request_id: int) -> Attempt | None:
        attempt = self._attempt
        is_it = attempt is not None and attempt.phase == "computing" and attempt.request_id == request_id
        return attempt if is_it else None

    def _pursue(self, attempt: Attempt) -> None:
        """Collect promises."""
        if attempt.plan is None:
            return
        now, settings = self._context.now, self._context.settings
        missing = [node_id for node_id in attempt.plan.node_ids if node_id not in attempt.promised]
        going = {m.node_id for m in self._coordinator.document.members if m.evicting or m.draining}
        unfit = {"dead", "left", "incompatible"}
        if any(n in going or self._coordinator.liveness(n) in unfit for n in attempt.plan.node_ids):
            self._attempt = None
        elif not missing:
            attempt.phase = "storing"
        elif now - attempt.since > settings.prepare_timeout_seconds:
            self._context.announce("prepare timed out", nodes=missing)
            self._drop(set(missing))
        else:
            generation, term = self._context.state.ballot
            for node_id in missing:
                if attempt.busy_until.get(node_id, now) <= now:
                    attempt.busy_until[node_id] = now + 2 * settings.plan_rpc_deadline_seconds
                    request = PrepareRequest(term, attempt.plan, generation, attempt.read_ahead_seconds)
                    self._context.send(node_id, request, settings.plan_rpc_deadline_seconds)

    def _drop(self, node_ids: set[str]) -> None:
        """Give the try up and leave these nodes out of the next."""
        for node_id in node_ids:
            self._exclude(node_id)
        self._attempt = None

    def _exclude(self, node_id: str) -> None:
        self._excluded_until[node_id] = self._context.now + self._context.settings.nack_exclude_seconds

    def _keep(self, attempt: Attempt, reason: str) -> None:
        """Stay with the plan that runs."""
        self._attempt = None
        self.rebalance.kept(_capacity(attempt.means), reason)
        self._context.announce("plan kept", reason=reason)

    def _refuse(self, attempt: Attempt, reason: str, refusal_json: str) -> None:
        if attempt.is_optional:
            self._keep(attempt, f"no other plan was found: {reason}")
            return
        self._attempt = None
        self._refusal = Refusal(attempt.wanted, attempt.means, self._context.now, reason, refusal_json)
        self._context.announce("plan refused", reason=reason)
        self._coordinator.changes.refuse(
            attempt.wanted, reason, "no plan can be made for the model", refusal_json
        )


def _capacity(means: "Iterable[tuple[str, NodeFacts | None]]") -> Capacity:
    """What a plan made of that can use."""
    return frozenset((node_id, facts.usable_bytes if facts else 0) for node_id, facts in means)
