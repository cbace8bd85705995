"""A read-only picture of the machine, for status."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .messages import ClusterDocument, Epoch, Plan, WorkerReport

Role = Literal["blank", "follower", "pre_candidate", "candidate", "coordinator"]
Liveness = Literal["alive", "suspect", "dead", "incompatible", "unknown"]
ServingState = Literal["idle", "planning", "loading", "ready", "degraded", "refused"]


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as this node sees it now.

    Attributes:
        node_id: This node.
        role: "blank" is a node without a document.
        generation: Of this node.
        term: Of this node.
        coordinator_node_id: Whom it follows; "" where it knows none.
        has_quorum: Whether a quorum follows that coordinator, as far as this node knows.
        document: The newest document known to be committed; None where none is.
        stored_document: The newest document stored, committed or not.
        liveness: Per member of the stored document; what the coordinator tells, at most a second old.
        heartbeat_ms: Per member, last round trip of a heartbeat; absent where unknown.
        workers: Per member that runs one, its worker as last reported.
        promised: What this node has promised.
        active: What this node's workers may use.
        active_plan: The plan of that epoch.
        serving_state: As in GetStatusResponse.
        refusal_json: The planner's last refusal; "" where the plan stands.
        refusal_reason: Its reason; known to the coordinator only.
        transport_failures: Nodes between which the group transport failed, and why; known to the coordinator only.
    """

    node_id: str
    role: Role
    generation: int
    term: int
    coordinator_node_id: str
    has_quorum: bool
    document: "ClusterDocument | None"
    stored_document: "ClusterDocument | None"
    liveness: "Mapping[str, Liveness]"
    heartbeat_ms: "Mapping[str, float]"
    workers: "Mapping[str, WorkerReport]"
    promised: "Epoch | None"
    active: "Epoch | None"
    active_plan: "Plan | None"
    serving_state: ServingState
    refusal_json: str
    refusal_reason: str
    transport_failures: "Mapping[frozenset[str], str]" = field(default_factory=dict)
