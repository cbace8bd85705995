"""A read-only picture of the machine, for status."""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .messages import ClusterDocument, Epoch, Plan, WorkerReport

Role = Literal["blank", "follower", "pre_candidate", "candidate", "coordinator"]
Liveness = Literal["alive", "suspect", "cut", "left", "dead", "incompatible", "unknown"]
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
        refusal_reason: Its reason, UPPER_SNAKE; set also where there is a refusal without JSON.
        standalone: This node has no quorum and serves, or is about to, a plan of its own: `active` and
            `active_plan` are then that plan's, with a local epoch. No other node knows of it.
        is_evicted: The stored document denies this node.
        not_planned: Per member that is left out of new plans, the reason for people.
        duplicate_node_ids: Members under whose identity a second machine answers.
        refused_boot_nonces: Per such member, the boot nonces of the refused ones; known to the coordinator
            only. Do not dial addresses that came with them.
        kept_reason: Why the plan was not moved to nodes that are free; "" where none is, or nothing was found out.
        unserved_since: Since when, by the clock of whoever asks for the view, this node has known that what is
            wanted is not served; None where it is, nothing is wanted, or nobody keeps count.
        transport_failures: Why a transport failed, by nodes and transport; known to the coordinator only.
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
    standalone: bool = False
    is_evicted: bool = False
    not_planned: "Mapping[str, str]" = field(default_factory=lambda: MappingProxyType({}))
    duplicate_node_ids: tuple[str, ...] = ()
    refused_boot_nonces: "Mapping[str, frozenset[int]]" = field(default_factory=lambda: MappingProxyType({}))
    transport_failures: "Mapping[tuple[frozenset[str], str], str]" = field(
        default_factory=lambda: MappingProxyType({})
    )
    kept_reason: str = ""
    unserved_since: float | None = None

    @property
    def is_unserved(self) -> bool:
        """Whether something is wanted and not served, for whatever reason."""
        is_wanted = self.document is not None and self.document.wanted is not None
        return is_wanted and self.serving_state != "ready"

    @property
    def plan(self) -> "Plan | None":
        """What requests are served under here: the node's own plan while `standalone`, else the committed."""
        if self.standalone:
            return self.active_plan
        return self.document.plan if self.document else None
