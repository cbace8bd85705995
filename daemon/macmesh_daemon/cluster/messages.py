"""The cluster's messages as plain values.

Each class mirrors, field by field and by name, the protobuf message of the same name in
``proto/macmesh/v1/types.proto`` and ``peer.proto``, where every field is described. An absent submessage is
None, a repeated field is a tuple, and the defaults are protobuf's. `macmesh_daemon.node.codec` converts.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from .quick import quickly_made

Version = tuple[int, int, int]
"""Version of a document: (generation, term, seq), compared lexicographically; (0, 0, 0) for none."""

Ballot = tuple[int, int]
"""(generation, term): what an election decides, compared lexicographically."""

NO_VERSION: Version = (0, 0, 0)


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """Names one plan. Compared lexicographically.

    Two lineages. A cluster's epochs have a generation of at least 1, and (generation, term) of the coordinator
    that made them. A *local* epoch names a plan that one node without a quorum made for itself only: its
    generation is 0, its term a hash of the node's id, its seq the node's own durable count. So every local
    epoch lies below every epoch of a cluster, none is equal to one, and two nodes share none.
    """

    generation: int = 0
    term: int = 0
    seq: int = 0

    @property
    def is_local(self) -> bool:
        """Whether it names a plan of one node for itself only."""
        return self.generation == 0

    def __str__(self) -> str:
        """Give the form used in logs and status, such as ``1.4.2``."""
        return f"{self.generation}.{self.term}.{self.seq}"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Names a model and pins its content."""

    model_id: str = ""
    path: str = ""
    digest: str = ""
    hub_commit: str = ""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line of a stage's ledger."""

    name: str = ""
    size_bytes: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a stage needs, in bytes; ``headroom_bytes`` is what is left."""

    entries: tuple[LedgerEntry, ...] = ()
    usable_bytes: int = 0
    headroom_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers ``first_layer`` up to but not including ``end_layer``, on one node."""

    index: int = 0
    node_id: str = ""
    first_layer: int = 0
    end_layer: int = 0
    ledger: Ledger | None = None
    cache_cost_json: str = ""
    cache_budget_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LinkBuffers:
    """What buffers each link between stages has, and how it is used. No ``max_outstanding``: the rest is default."""

    num_buffers: int = 0
    frame_bytes: int = 0
    buffer_sizes: int = 0
    max_outstanding: int = 0
    spin_us: float = 0.0
    sockets: int = 0
    checksum_payloads: bool = False


@dataclass(frozen=True, slots=True)
class DeviceList:
    """RDMA devices of one stage towards another, one for each cable."""

    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One stage's devices towards each stage."""

    cells: tuple[DeviceList, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceMatrix:
    """By which RDMA devices each stage reaches each other one."""

    rows: tuple[DeviceRow, ...] = ()
    ring: bool = False


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model as it is spread over the cluster."""

    model: ModelRef | None = None
    layer_count: int = 0
    context_tokens: int = 0
    slots: int = 0
    prefill_chunk_tokens: int = 0
    stages: tuple[Stage, ...] = ()
    transport: str = ""
    sync_mode: str = ""
    predicted_decode_seconds: float = 0.0
    link_buffers: LinkBuffers | None = None
    device_matrix: DeviceMatrix | None = None
    transport_reason: str = ""
    kv_bits: int = 0
    parallelism: str = ""
    parallelism_reason: str = ""
    transfers: str = ""
    predicted_objective_seconds: float = 0.0
    transport_compared: bool = False


@dataclass(frozen=True, slots=True)
class WantedModel:
    """What the cluster was asked to serve."""

    model: ModelRef | None = None
    context_tokens: int = 0
    slots: int = 0
    objective: str = ""
    stage_count: int = 0
    kv_bits: int = 0
    allow_tensor_parallel: bool = False
    transfers: str = ""


@dataclass(frozen=True)  # no slots: it remembers what is asked at every step
class Plan:
    """What the whole cluster runs under one epoch."""

    epoch: Epoch | None = None
    deployments: tuple[Deployment, ...] = ()
    wanted: WantedModel | None = None

    @cached_property
    def node_ids(self) -> tuple[str, ...]:
        """The nodes that run a stage, in the order of the stages."""
        return tuple(stage.node_id for deployment in self.deployments for stage in deployment.stages)

    def stage_of(self, node_id: str) -> tuple[Deployment, Stage] | None:
        """The deployment and stage that ``node_id`` runs, or None."""
        for deployment in self.deployments:
            for stage in deployment.stages:
                if stage.node_id == node_id:
                    return deployment, stage
        return None


@dataclass(frozen=True)  # no slots: it remembers what is asked at every step
class NodeFacts:
    """What a node knows about its own machine."""

    hostname: str = ""
    host_id: str = ""
    chip: str = ""
    ram_bytes: int = 0
    usable_bytes: int = 0
    bandwidth_gb_per_s: float = 0.0
    table_bandwidth_gb_per_s: float = 0.0
    macmesh_version: str = ""
    mlx_version: str = ""
    mlx_lm_version: str = ""
    portable: bool = False
    cpu_count: int = 0
    rdma_json: str = ""

    @cached_property
    def versions(self) -> tuple[str, str, str]:
        """Versions of macmesh, mlx and mlx-lm: all members of a plan run the same ones."""
        return (self.macmesh_version, self.mlx_version, self.mlx_lm_version)


@dataclass(frozen=True, slots=True)
class Member:
    """A node admitted to the cluster."""

    node_id: str = ""
    addresses: tuple[str, ...] = ()
    facts: NodeFacts | None = None
    voter: bool = False
    discovery: str = ""
    evicting: bool = False
    draining: bool = False
    drain_forced: bool = False
    drain_leaves: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """How the cluster makes its decisions."""

    tie_breaker_node_id: str = ""
    tie_breaker_votes: int = 0


@dataclass(frozen=True)  # no slots: it remembers what is asked at every step
class ClusterDocument:
    """The one replicated, versioned document."""

    generation: int = 0
    term: int = 0
    seq: int = 0
    members: tuple[Member, ...] = ()
    plan: Plan | None = None
    wanted: WantedModel | None = None
    policy: Policy | None = None
    denied_node_ids: tuple[str, ...] = ()

    @cached_property
    def version(self) -> Version:
        """(generation, term, seq)."""
        return (self.generation, self.term, self.seq)

    @cached_property
    def by_node_id(self) -> Mapping[str, Member]:
        """The members by their names, in their order."""
        return {member.node_id: member for member in self.members}

    def member(self, node_id: str) -> Member | None:
        """The member ``node_id``, or None."""
        return self.by_node_id.get(node_id)


class WorkerState(enum.Enum):
    """The life of a worker; the names are those of the protobuf enum without its prefix."""

    UNSPECIFIED = "unspecified"
    STARTING = "starting"
    LOADING = "loading"
    LOADED = "loaded"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """What carries the arrays between two stages, as one of them sees it."""

    peer_stage: int = 0
    provider: str = ""
    reason: str = ""
    latency_us: float = 0.0
    gb_per_s: float = 0.0
    pool_bytes: int = 0
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartPhase:
    """A part of a worker's start."""

    name: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """Where the weights of a stage come from, while they come."""

    total_bytes: int = 0
    disk_bytes: int = 0
    peer_bytes: int = 0
    hub_bytes: int = 0
    source_node_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a member says about its own worker."""

    epoch: Epoch | None = None
    stage_index: int = 0
    state: WorkerState = WorkerState.UNSPECIFIED
    loaded_bytes: int = 0
    total_bytes: int = 0
    control_address: str = ""
    tensor_address: str = ""
    error: str = ""
    peer_lost: bool = False
    sync_mode: str = ""
    sync_reason: str = ""
    hung: bool = False
    links: tuple[LinkStatus, ...] = ()
    transport_failure: str = ""
    start_phases: tuple[StartPhase, ...] = ()
    transfers: str = ""
    transfers_reason: str = ""
    fetch: FetchProgress | None = None
    kept_bytes: int = 0
    process: str = ""
    process_reason: str = ""
    resting: bool = False


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """How the coordinator sees one member."""

    node_id: str = ""
    liveness: str = ""
    heartbeat_ms: float = 0.0
    worker: WorkerReport | None = None
    duplicate_identity: bool = False
    not_planned_reason: str = ""


@dataclass(frozen=True, slots=True)
class RequestVoteRequest:
    """Asks for a vote, or with ``pre_vote`` whether one would be given."""

    pre_vote: bool = False
    generation: int = 0
    term: int = 0
    document_generation: int = 0
    document_term: int = 0
    document_seq: int = 0
    transfer: bool = False

    @property
    def document_version(self) -> Version:
        """Version of the caller's document."""
        return (self.document_generation, self.document_term, self.document_seq)


@dataclass(frozen=True, slots=True)
class RequestVoteResponse:
    """Grants or refuses. A granted pre-vote echoes the term asked about; else ``term`` is the voter's."""

    pre_vote: bool = False
    granted: bool = False
    generation: int = 0
    term: int = 0
    reason: str = ""


@quickly_made
@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    """The coordinator's heartbeat; carries the document where the member's is older."""

    generation: int = 0
    term: int = 0
    round: int = 0
    document: ClusterDocument | None = None
    commit_term: int = 0
    commit_seq: int = 0
    commit_generation: int = 0
    members: tuple[MemberStatus, ...] = ()
    serving_state: str = ""
    refusal_json: str = ""
    refusal_reason: str = ""
    kept_reason: str = ""

    @property
    def commit_version(self) -> Version:
        """Version that a quorum has stored."""
        return (self.commit_generation, self.commit_term, self.commit_seq)


@quickly_made
@dataclass(frozen=True, slots=True)
class HeartbeatResponse:
    """What the member knows of itself."""

    generation: int = 0
    term: int = 0
    round: int = 0
    document_generation: int = 0
    document_term: int = 0
    document_seq: int = 0
    promised: Epoch | None = None
    active: Epoch | None = None
    worker: WorkerReport | None = None
    accepted: bool = False
    boot_nonce: int = 0
    facts: NodeFacts | None = None
    leaving: bool = False

    @property
    def document_version(self) -> Version:
        """Version of the document that the member has stored durably."""
        return (self.document_generation, self.document_term, self.document_seq)

    def tells_the_same(self, other: "HeartbeatResponse") -> bool:
        """Whether all but the number of the round is equal."""
        return (
            (self.worker is other.worker or self.worker == other.worker)
            and self.document_seq == other.document_seq
            and self.document_term == other.document_term
            and self.document_generation == other.document_generation
            and self.term == other.term
            and self.generation == other.generation
            and (self.promised is other.promised or self.promised == other.promised)
            and (self.active is other.active or self.active == other.active)
            and self.accepted == other.accepted
            and self.leaving == other.leaving
            and self.boot_nonce == other.boot_nonce
            and (self.facts is other.facts or self.facts == other.facts)
        )


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """Asks for a durable promise of the plan's epoch."""

    term: int = 0
    plan: Plan | None = None
    generation: int = 0
    read_ahead_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PrepareResponse:
    """Gives or refuses the promise."""

    epoch: Epoch | None = None
    promised: bool = False
    reason: str = ""
    term: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """Makes a promised epoch active."""

    term: int = 0
    epoch: Epoch | None = None
    generation: int = 0


@dataclass(frozen=True, slots=True)
class CommitResponse:
    """Says whether the epoch is active now."""

    epoch: Epoch | None = None
    committed: bool = False
    reason: str = ""
    term: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where the worker of a stage listens."""

    stage_index: int = 0
    node_id: str = ""
    control_address: str = ""
    tensor_address: str = ""


@dataclass(frozen=True, slots=True)
class SetPeersRequest:
    """The addresses and the fresh key of an epoch. Stored nowhere, logged nowhere."""

    term: int = 0
    epoch: Epoch | None = None
    peers: tuple[PeerAddress, ...] = ()
    epoch_key: bytes = b""
    generation: int = 0

    def __repr__(self) -> str:
        """Show all but the key."""
        return (
            f"SetPeersRequest(generation={self.generation}, term={self.term}, "
            f"epoch={self.epoch}, peers={self.peers})"
        )


@dataclass(frozen=True, slots=True)
class SetPeersResponse:
    """Says whether the worker was told."""

    epoch: Epoch | None = None
    accepted: bool = False
    reason: str = ""
    term: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Asks the callee whether it is there, or whether ``target_node_id`` answers it."""

    generation: int = 0
    term: int = 0
    target_node_id: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResponse:
    """Says whether the target answered."""

    generation: int = 0
    term: int = 0
    target_node_id: str = ""
    reached: bool = False


@dataclass(frozen=True, slots=True)
class LeaveRequest:
    """The caller goes down in order."""

    generation: int = 0
    term: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LeaveResponse:
    """Says whether the coordinator has heard the goodbye."""

    generation: int = 0
    term: int = 0
    heard: bool = False


@dataclass(frozen=True, slots=True)
class TransferLeadershipRequest:
    """The coordinator asks a voter to campaign at once."""

    generation: int = 0
    term: int = 0


@dataclass(frozen=True, slots=True)
class TransferLeadershipResponse:
    """Says whether it does."""

    generation: int = 0
    term: int = 0
    accepted: bool = False
    reason: str = ""


Request = (
    RequestVoteRequest
    | HeartbeatRequest
    | PrepareRequest
    | CommitRequest
    | SetPeersRequest
    | ProbeRequest
    | LeaveRequest
    | TransferLeadershipRequest
)
Response = (
    RequestVoteResponse
    | HeartbeatResponse
    | PrepareResponse
    | CommitResponse
    | SetPeersResponse
    | ProbeResponse
    | LeaveResponse
    | TransferLeadershipResponse
)
