"""Follows the load of a plan until it serves or fails."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from macmesh.reasons import Reason
from macmesh.v1 import cluster_pb2
from macmesh_daemon.cluster.messages import WorkerState
from macmesh_daemon.node.call_errors import CallError
from macmesh_daemon.node.codec import to_proto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from macmesh_daemon.cluster.messages import Epoch, Plan
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.node.driver import CoreDriver

#: A load of hundreds of gigabytes takes minutes; a client may set a shorter deadline on its call.
DEFAULT_DEADLINE_SECONDS = 3600.0
#: The caller is told of the failure after this many epochs; the cluster goes on trying, slower each time.
MAX_EPOCHS = 3


def phase_of(view: ClusterView, plan: Plan) -> str:
    """The phase of a committed plan: "committed", "loading", "connecting" or "ready"."""
    if not plan.deployments:
        return "ready"
    states = []
    for stage in plan.deployments[0].stages:
        report = view.workers.get(stage.node_id)
        states.append(report.state if report is not None and report.epoch == plan.epoch else None)
    if all(state is WorkerState.READY for state in states):
        return "ready"
    if all(state in {WorkerState.LOADED, WorkerState.READY} for state in states):
        return "connecting"
    return "loading" if any(states) else "committed"


async def follow_load(
    driver: CoreDriver, epoch: Epoch, deadline_seconds: float
) -> AsyncIterator[cluster_pb2.LoadModelResponse]:
    """Progress of the plan of this epoch, or of the newer ones that replace it; ends when it is ready.

    Raises:
        CallError: the plan was withdrawn, its workers kept failing, or the deadline passed.
    """
    told: object = None
    epochs = {epoch}
    error_text = ""
    limit = min(deadline_seconds, DEFAULT_DEADLINE_SECONDS)
    while True:
        try:
            view = await driver.wait_until(partial(_news, epoch, told), limit)
        except TimeoutError:
            raise CallError(
                Reason.NOT_READY,
                f"the plan {epoch} was not ready in time; it goes on loading, see `daemonctl status`",
            ) from None
        told = _progress(view, epoch)
        plan = view.document.plan if view.document else None
        if plan is None or plan.epoch is None:
            continue
        error_text = _failure(view, plan) or error_text
        epochs.add(plan.epoch)
        if not plan.deployments or len(epochs) > MAX_EPOCHS:
            why = error_text or "the plan was withdrawn"
            raise CallError(Reason.WORKER_FAILED, f"the model could not be served: {why}")
        phase = phase_of(view, plan)
        if view.refusal_json and phase != "ready" and error_text:
            raise CallError(Reason.WORKER_FAILED, error_text)
        yield cluster_pb2.LoadModelResponse(
            phase=phase,
            epoch=to_proto(plan.epoch),
            workers=[to_proto(r) for r in view.workers.values() if r.epoch == plan.epoch],
            deployment=to_proto(plan.deployments[0]),
        )
        if phase == "ready":
            return


def _news(epoch: Epoch, known: object, view: ClusterView) -> bool:
    return _progress(view, epoch) not in (None, known)


def _progress(view: ClusterView, epoch: Epoch) -> object:
    """What a follower wants to be told of; None while the plan is not known here yet."""
    plan = view.document.plan if view.document else None
    if plan is None or plan.epoch is None or plan.epoch < epoch:
        return None
    reports = tuple(sorted((k, r) for k, r in view.workers.items() if r.epoch == plan.epoch))
    return (plan.epoch, tuple((k, r.state, r.loaded_bytes, r.error) for k, r in reports), view.refusal_json)


def _failure(view: ClusterView, plan: Plan) -> str:
    for report in view.workers.values():
        if report.epoch == plan.epoch and report.state is WorkerState.FAILED:
            return f"stage {report.stage_index}: {report.error}"
    return ""
