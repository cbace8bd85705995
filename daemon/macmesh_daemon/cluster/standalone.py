"""A node left alone plans for itself only.

Whoever follows no coordinator for `standalone_after_seconds`, and runs no worker that serves, makes a plan of one
stage on itself for what the cluster last wanted. Its epoch is local (see `Epoch`): it is promised to nobody,
stored in no document, sent to no node, and below every epoch of a cluster. Promise, active epoch, term, vote and
document of the node stay as they are, so a cluster finds the node exactly as it left it. A coordinator that is
followed ends it at once; the worker slot sees to it that the worker is gone before another starts.
"""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from .effects import CheckPrepare, ComputePlan
from .failures import FailureRecord
from .messages import (
    Deployment,
    Epoch,
    PeerAddress,
    Plan,
    SetPeersRequest,
    WantedModel,
    WorkerState,
)

if TYPE_CHECKING:
    from .context import Context
    from .election import Election
    from .replica import Replica
    from .view import ServingState

_ENDED = {WorkerState.FAILED, WorkerState.STOPPED}


def local_epoch(node_id: str, seq: int) -> Epoch:
    """The epoch of the ``seq``-th plan that ``node_id`` makes for itself only."""
    drawn = hashlib.sha256(node_id.encode()).digest()[:8]
    return Epoch(0, int.from_bytes(drawn) >> 1, seq)


class Standalone:
    """This node's own plan, while it has no coordinator."""

    def __init__(self, context: "Context", election: "Election", replica: "Replica") -> None:
        self._context = context
        self._election = election
        self._replica = replica
        self._failures = FailureRecord(context.settings)
        self._alone_since = context.now
        self._not_before = context.now
        self._phase: Literal["", "computing", "checking", "running"] = ""
        self._phase_since = context.now
        self._request_id = 0
        self._wanted: WantedModel | None = None
        self._plan: Plan | None = None
        self._is_connected = False
        self._refused: tuple[str, str] | None = None

    @property
    def is_on(self) -> bool:
        """Whether this node runs, or is about to run, a plan of its own."""
        return bool(self._phase) or self._refused is not None

    @property
    def plan(self) -> Plan | None:
        """The plan of its own that runs; None where none does."""
        return self._plan if self._phase == "running" else None

    @property
    def refusal(self) -> tuple[str, str]:
        """Reason and JSON of the planner's last refusal; "" where there is none."""
        return self._refused or ("", "")

    @property
    def serving_state(self) -> "ServingState":
        """What this node is doing for its users."""
        if self._phase != "running":
            return "refused" if self._refused is not None else "planning"
        report = self._replica.slot.report
        return "ready" if report is not None and report.state is WorkerState.READY else "loading"

    def deadline(self) -> float | None:
        """When something is due; None where only an event can change anything."""
        if not self._may_begin():
            return None
        if not self._phase:
            if self._serves_cluster():
                return None
            return self._begin_at
        if self._phase == "computing":
            return self._phase_since + self._context.settings.compute_timeout_seconds
        return None

    def was_away(self) -> None:
        """Do not count the own absence as that of the coordinator."""
        self._alone_since = self._context.now

    def advance(self) -> None:
        """Begin, go on, or end. Called after every event."""
        now = self._context.now
        if self._election.hears_coordinator or not self._may_begin():
            self._alone_since = now
            if self._phase or self._refused is not None:
                self._end()
            return
        if not self._phase:
            if now >= self._begin_at and not self._serves_cluster():
                self._begin()
        elif self._phase == "computing":
            if now >= self._phase_since + self._context.settings.compute_timeout_seconds:
                self._refuse("PLANNER_TIMEOUT", "")
        elif self._phase == "running":
            self._attend()

    def on_computed(self, request_id: int, deployment: Deployment | None) -> None:
        """Take the planner's plan where it is one stage on this node; have it checked."""
        if self._phase != "computing" or request_id != self._request_id:
            return
        if deployment is None or [s.node_id for s in deployment.stages] != [self._context.node_id]:
            self._refuse("NO_PLAN", "")
            return
        self._context.persist(local_seq=self._context.state.local_seq + 1)
        epoch = local_epoch(self._context.node_id, self._context.state.local_seq)
        self._plan = Plan(epoch, (deployment,), self._wanted)
        self._enter("checking")
        self._context.emit(CheckPrepare(self._plan, deployment.stages[0]))

    def on_refused(self, request_id: int, reason: str, refusal_json: str) -> None:
        """Take the planner's refusal."""
        if self._phase == "computing" and request_id == self._request_id:
            self._refuse(reason, refusal_json)

    def on_checked(self, epoch: Epoch, *, ok: bool, reason: str) -> None:
        """The shell has checked the plan: run it."""
        plan = self._plan
        if self._phase != "checking" or plan is None or plan.epoch != epoch:
            return
        if not ok:
            self._refuse("CHECK_FAILED", "")
            self._context.announce("standalone plan failed its check", reason=reason)
            return
        self._enter("running")
        self._is_connected = False
        self._context.announce("standalone", epoch=str(epoch))
        self._replica.slot.activate(plan, None)

    @property
    def _begin_at(self) -> float:
        alone_at = self._alone_since + self._context.settings.standalone_after_seconds
        return max(alone_at, self._not_before)

    def _may_begin(self) -> bool:
        """Whether this node is of a cluster that wants something served and may be served without it."""
        state = self._context.state
        document = state.document
        own = document.member(self._context.node_id) if document is not None else None
        return (
            document is not None
            and document.wanted is not None
            and self._context.settings.standalone
            and not self._context.is_leaving
            and own is not None
            and not own.draining
        )

    def _serves_cluster(self) -> bool:
        """Whether this node's worker serves the cluster's plan still, or is on its way in or out."""
        slot = self._replica.slot
        if slot.is_changing:
            return True
        return slot.running is not None and slot.report is not None and slot.report.state is WorkerState.READY

    def _begin(self) -> None:
        document = self._context.state.document
        own = document.member(self._context.node_id) if document else None
        if document is None or own is None or document.wanted is None:
            return
        self._refused = None
        self._wanted = document.wanted
        self._request_id = self._context.next_request_id()
        self._enter("computing")
        self._context.announce("planning alone", reason="no coordinator leads and nothing serves here")
        self._context.emit(
            ComputePlan(
                self._request_id,
                replace(document.wanted, stage_count=0),
                (replace(own, facts=self._context.facts, addresses=self._context.addresses),),
                None,
            )
        )

    def _attend(self) -> None:
        """Bring the own worker to READY; begin anew where it ended."""
        plan, report = self._plan, self._replica.slot.report
        if plan is None or plan.epoch is None or report is None or report.epoch != plan.epoch:
            return
        if report.state is WorkerState.LOADED and not self._is_connected:
            self._is_connected = True
            own = PeerAddress(0, self._context.node_id, report.control_address, report.tensor_address)
            generation, term = self._context.state.ballot
            request = SetPeersRequest(term, plan.epoch, (own,), self._context.key_source(), generation)
            self._replica.give_peers(request)
        elif report.state in _ENDED:
            digest = plan.deployments[0].model.digest if plan.deployments[0].model else ""
            now = self._context.now
            backoff = self._failures.backoff_seconds(digest, now)
            if self._failures.record(self._context.node_id, digest, now):
                backoff = self._context.settings.quarantine_seconds
            self._not_before = now + backoff
            self._phase, self._plan = "", None
            self._replica.slot.end_local()

    def _refuse(self, reason: str, refusal_json: str) -> None:
        """Remember the refusal; ask again much later, as the machine may have changed."""
        self._phase, self._plan = "", None
        self._refused = (reason, refusal_json)
        self._not_before = self._context.now + self._context.settings.nack_exclude_seconds
        self._context.announce("standalone plan refused", reason=reason)

    def _end(self) -> None:
        if not self.is_on:
            return
        if self._phase == "running":
            self._context.announce("standalone ended")
        keep = self._is_wanted(self._plan)
        self._phase, self._plan, self._refused = "", None, None
        self._not_before = self._context.now
        self._replica.slot.end_local(keep=keep)

    def _is_wanted(self, plan: Plan | None) -> bool:
        """Whether the cluster wants the model of that plan, as far as this node knows."""
        document = self._context.state.document
        wanted = document.wanted.model if document is not None and document.wanted is not None else None
        return plan is not None and wanted is not None and plan.deployments[0].model == wanted

    def _enter(self, phase: Literal["computing", "checking", "running"]) -> None:
        self._phase = phase
        self._phase_since = self._context.now
