"""A read-only picture of a machine, put together from its parts."""

from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from .view import ClusterView, Liveness, ServingState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .context import Context
    from .coordinator import Coordinator
    from .election import Election
    from .messages import MemberStatus, WorkerReport
    from .replica import Replica
    from .standalone import Standalone


def picture_of(
    context: "Context",
    election: "Election",
    replica: "Replica",
    standalone: "Standalone",
    coordinator: "Coordinator | None",
    *,
    has_double: bool,
) -> ClusterView:
    """The cluster as this node sees it now.

    Args:
        context: Of the node.
        election: Its part in elections.
        replica: It as a member.
        standalone: Its own plan.
        coordinator: Where it coordinates.
        has_double: Whether another daemon has this node's identity.
    """
    state, own = context.state, context.node_id
    told = _told(replica, coordinator)
    heard = told if election.hears_coordinator else {}
    refusal_json, refusal_reason = replica.told_refusal_json, replica.told_refusal_reason
    kept_reason = replica.told_kept_reason
    serving_state = cast("ServingState", replica.told_serving_state or "idle")
    if coordinator is not None:
        serving_state = coordinator.serving_state
        refusal_json = coordinator.planning.refusal_json
        refusal_reason = coordinator.planning.refusal_reason
        kept_reason = coordinator.planning.rebalance.kept_reason
    active, active_plan = state.active, state.active_plan
    if standalone.is_on:
        serving_state = standalone.serving_state
        refusal_reason, refusal_json = standalone.refusal
        kept_reason = ""
        active_plan = standalone.plan
        active = active_plan.epoch if active_plan else None
    doubles = {node_id for node_id, status in heard.items() if status.duplicate_identity}
    tracks = coordinator.watch.tracks if coordinator is not None else {}
    return ClusterView(
        node_id=own,
        role=election.role,
        generation=state.generation,
        term=state.term,
        coordinator_node_id=election.coordinator_id,
        has_quorum=bool(election.coordinator_id) and election.hears_coordinator,
        document=replica.committed,
        stored_document=state.document,
        liveness=MappingProxyType(_liveness(context, heard)),
        heartbeat_ms=MappingProxyType({n: s.heartbeat_ms for n, s in told.items() if s.heartbeat_ms >= 0}),
        workers=MappingProxyType(_workers(own, told, replica)),
        promised=state.promised,
        active=active,
        active_plan=active_plan,
        serving_state=serving_state,
        refusal_json=refusal_json,
        refusal_reason=refusal_reason,
        standalone=standalone.is_on,
        is_evicted=state.document is not None and own in state.document.denied_node_ids,
        not_planned=MappingProxyType(
            {n: s.not_planned_reason for n, s in heard.items() if s.not_planned_reason}
        ),
        duplicate_node_ids=tuple(sorted(doubles | ({own} if has_double else set()))),
        refused_boot_nonces=MappingProxyType({n: t.refused for n, t in tracks.items() if t.refused}),
        transport_failures=MappingProxyType(
            coordinator.planning.transport_failures if coordinator is not None else {}
        ),
        kept_reason=kept_reason,
    )


def _told(replica: "Replica", coordinator: "Coordinator | None") -> "Mapping[str, MemberStatus]":
    if coordinator is not None:
        return {status.node_id: status for status in coordinator.watch.statuses()}
    return replica.told_members


def _liveness(context: "Context", heard: "Mapping[str, MemberStatus]") -> dict[str, Liveness]:
    found: dict[str, Liveness] = {}
    document = context.state.document
    for member in document.members if document else ():
        status = heard.get(member.node_id)
        found[member.node_id] = cast("Liveness", status.liveness) if status else "unknown"
    own = context.node_id
    if own in found:
        found[own] = "incompatible" if found[own] == "incompatible" else "alive"
    return found


def _workers(own: str, told: "Mapping[str, MemberStatus]", replica: "Replica") -> "dict[str, WorkerReport]":
    workers = {node_id: status.worker for node_id, status in told.items() if status.worker is not None}
    if replica.slot.report is not None:
        workers[own] = replica.slot.report
    return workers
