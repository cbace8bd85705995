"""The status of the cluster, as this node sees it: one view in, one message out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from macmesh.v1 import cluster_pb2
from macmesh_daemon.cluster.messages import WorkerState
from macmesh_daemon.node.codec import to_proto

if TYPE_CHECKING:
    from macmesh_daemon.cluster.messages import Deployment, Member, Stage
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.node.runtime import Node


async def status_of(node: Node) -> cluster_pb2.GetStatusResponse:
    """The status that this node gives to clients; waits a moment where another node has the schedule."""
    plan = node.driver.view.plan
    schedule = None
    if plan is not None and plan.epoch is not None and plan.deployments and plan.deployments[0].stages:
        schedule = await node.head_schedule.newest(plan.epoch, plan.deployments[0].stages[0].node_id)
    view = node.driver.view
    if view.plan is None or plan is None or view.plan.epoch != plan.epoch:
        schedule = None
    status = build_status(
        view,
        node_id=node.node_id,
        cluster=node.cluster_prefix,
        health=(*health_of(view), *node.health()),
        active_requests=node.requests.active,
        waiting_requests=node.requests.waiting,
    )
    if view.unserved_since is not None:
        status.unserved_seconds = max(0.0, node.clock.now() - view.unserved_since)
    if schedule is not None:
        status.schedule.CopyFrom(schedule.scheduler)
        status.schedule_age_seconds = schedule.age_seconds
    return status


def build_status(
    view: ClusterView,
    *,
    node_id: str,
    cluster: str,
    health: tuple[str, ...],
    active_requests: int,
    waiting_requests: int,
) -> cluster_pb2.GetStatusResponse:
    """The status message of a view; members in document order, the coordinator told by its role."""
    document = view.document
    members = document.members if document else ()
    deployment = _deployment(view)
    return cluster_pb2.GetStatusResponse(
        cluster=cluster,
        node_id=node_id,
        coordinator_node_id=view.coordinator_node_id,
        term=view.term,
        has_quorum=view.has_quorum,
        document=to_proto(document) if document else None,
        nodes=[_node_status(view, member, deployment) for member in members],
        serving_state=view.serving_state,
        health=health,
        active_requests=active_requests,
        waiting_requests=waiting_requests,
        refusal_json=view.refusal_json,
        refusal_reason=view.refusal_reason,
        kept_reason=view.kept_reason,
    )


_LIVENESS = {"cut": "cut off from the coordinator, though others reach it", "left": "gone: it said goodbye"}


def health_of(view: ClusterView) -> tuple[str, ...]:
    """What the cluster's state gives a person to know or do, worst first."""
    lines: list[str] = []
    if view.document is None:
        lines.append(
            "this node belongs to no cluster document yet: waiting for the founder or for enough nodes"
        )
    elif view.is_evicted:
        lines.append("this node was evicted from the cluster; it takes part in nothing any more")
    elif view.standalone:
        lines.append("no quorum: this node plans for itself only, until a coordinator is back")
    elif not view.coordinator_node_id:
        lines.append("no coordinator: an election is under way, or too few voters can be reached")
    elif not view.has_quorum:
        lines.append("no quorum: the running plan goes on serving, but nothing can be changed")
    members = view.document.members if view.document else ()
    names = {m.node_id: m.facts.hostname for m in members if m.facts}
    for peer, liveness in sorted(view.liveness.items()):
        if liveness in {"dead", "suspect", "cut", "left", "incompatible"}:
            lines.append(
                f"node {peer[:8]} ({names.get(peer, 'unknown')}) is {_LIVENESS.get(liveness, liveness)}"
            )
    lines.extend(
        f"DUPLICATE_ID: a second daemon has the identity of node {peer[:8]} ({names.get(peer, 'unknown')}); "
        "it is refused: stop it, and give a copied machine a data folder of its own"
        for peer in view.duplicate_node_ids
    )
    lines.extend(
        f"node {peer[:8]} ({names.get(peer, 'unknown')}) is left out of new plans: {reason}"
        for peer, reason in sorted(view.not_planned.items())
    )
    if view.kept_reason:
        lines.append(f"nodes are free and the plan stays: {view.kept_reason}")
    if view.refusal_json:
        lines.append(f"the wanted model is not served as asked: {refusal_message(view.refusal_json)}")
    return tuple(lines)


def refusal_message(refusal_json: str) -> str:
    """The message for people of a planner's refusal."""
    message: str = json.loads(refusal_json).get("message", "")
    return message


def _deployment(view: ClusterView) -> Deployment | None:
    plan = view.plan
    return plan.deployments[0] if plan and plan.deployments else None


def _node_status(view: ClusterView, member: Member, deployment: Deployment | None) -> cluster_pb2.NodeStatus:
    stage = _stage_of(member.node_id, deployment)
    report = view.workers.get(member.node_id)
    status = cluster_pb2.NodeStatus(
        member=to_proto(member),
        role=_role(view, member),
        liveness=view.liveness.get(member.node_id, "unknown"),
        heartbeat_ms=view.heartbeat_ms.get(member.node_id, -1.0),
        drain=drain_of(view, member),
        worker=to_proto(report) if report is not None else None,
    )
    if stage is not None and deployment is not None and stage.ledger is not None:
        entries = {entry.name: entry.size_bytes for entry in stage.ledger.entries}
        status.stage.CopyFrom(to_proto(stage))
        status.weights_bytes = sum(entries.get(name, 0) for name in ("weights", "embedding", "head"))
        status.cache_bytes = entries.get("cache", 0)
        status.headroom_bytes = stage.ledger.headroom_bytes
        links = report.links if report is not None else ()
        status.link = "+".join(sorted({link.provider for link in links})) or deployment.transport
    return status


def drain_of(view: ClusterView, member: Member) -> str:
    """How far the drain of a member is: "draining", "drained", or "" where there is none."""
    if not member.draining:
        return ""
    report = view.workers.get(member.node_id)
    plan = view.document.plan if view.document is not None else None
    is_planned = plan is not None and member.node_id in plan.node_ids
    runs = report is not None and report.state not in {WorkerState.FAILED, WorkerState.STOPPED}
    return "draining" if is_planned or runs else "drained"


def _stage_of(node_id: str, deployment: Deployment | None) -> Stage | None:
    stages = deployment.stages if deployment else ()
    return next((stage for stage in stages if stage.node_id == node_id), None)


def _role(view: ClusterView, member: Member) -> str:
    if member.node_id == view.coordinator_node_id:
        return "coordinator"
    return "voter" if member.voter else "member"
