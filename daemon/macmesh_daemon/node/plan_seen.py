"""What a node's view of the cluster means for its requests. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from macmesh.reasons import Reason
from macmesh_daemon.cluster.messages import WorkerState
from macmesh_daemon.node.call_errors import known_reason
from macmesh_daemon.requests.events import PlanPending, PlanReady, PlanWithdrawn

if TYPE_CHECKING:
    from macmesh_daemon.cluster.messages import Deployment, ModelRef, Plan
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.requests.events import PlanSeen

NOTHING_SERVED = "the cluster serves no model; load one with `daemonctl load MODEL`"


def served_model(view: ClusterView) -> ModelRef | None:
    """The model of the plan, or of the one that is to come; None where nothing is wanted."""
    deployment = _deployment(view.plan)
    if deployment is not None:
        return deployment.model
    document = view.document or view.stored_document
    if document is None:
        return None
    if document.wanted is not None:
        return document.wanted.model
    # What was stored and is not known to be committed: the cluster's word on it is still to come.
    stored = _deployment(document.plan) if view.document is None else None
    return stored.model if stored is not None else None


def plan_seen(view: ClusterView) -> PlanSeen:
    """The plan as requests are told of it."""
    model = served_model(view)
    if model is None:
        return PlanWithdrawn(Reason.NO_MODEL_LOADED, NOTHING_SERVED)
    plan = view.plan
    deployment = _deployment(plan)
    if plan is None or plan.epoch is None or deployment is None or not deployment.stages:
        epoch = plan.epoch if plan is not None else None
        return PlanPending(epoch, *_why_none(view), model.digest, model.model_id)
    missing = _missing(view, plan, deployment)
    if missing is not None:
        return PlanPending(plan.epoch, *missing, model.digest, model.model_id)
    head = deployment.stages[0].node_id
    return PlanReady(plan.epoch, head, deployment.context_tokens, model.digest, model.model_id)


def _deployment(plan: Plan | None) -> Deployment | None:
    return plan.deployments[0] if plan is not None and plan.deployments else None


def _missing(view: ClusterView, plan: Plan, deployment: Deployment) -> tuple[Reason, str] | None:
    """Why a plan is not ready; None where it is, as far as this node knows."""
    reports = {
        stage.index: report
        for stage in deployment.stages
        if (report := view.workers.get(stage.node_id)) is not None and report.epoch == plan.epoch
    }
    is_told = view.has_quorum or view.standalone
    late = [
        stage
        for stage in deployment.stages
        # Where nobody tells, the head knows best: it is asked.
        if (stage.index in reports or is_told)
        and (stage.index not in reports or reports[stage.index].state is not WorkerState.READY)
    ]
    if late:
        stage = late[0]
        report = reports.get(stage.index)
        state = report.state.value if report is not None else "not there"
        worker = f"the worker of stage {stage.index} on node {stage.node_id[:8]}"
        why = f"the plan {plan.epoch} is being made ready: {worker} is {state}"
        # A plan that lost a stage stays in force where nothing fits in its place.
        return _refusal(view) or (Reason.NOT_READY, why)
    if is_told and view.serving_state != "ready":
        why = f"the plan {plan.epoch} cannot go on ({view.serving_state}), and another one is being made"
        return _refusal(view) or (Reason.NOT_READY, why)
    return None


def _why_none(view: ClusterView) -> tuple[Reason, str]:
    refusal = _refusal(view)
    if refusal is not None:
        return refusal
    if view.document is None or not (view.has_quorum or view.standalone):
        return Reason.NO_QUORUM, "this node does not hear what the cluster runs: no quorum, or none yet"
    return Reason.NOT_READY, "the plan for the model is being made"


def _refusal(view: ClusterView) -> tuple[Reason, str] | None:
    if not view.refusal_json:
        return None
    known = known_reason(view.refusal_reason)
    reason = Reason.DOES_NOT_FIT if known is Reason.UNKNOWN else known
    return reason, str(json.loads(view.refusal_json).get("message", ""))
