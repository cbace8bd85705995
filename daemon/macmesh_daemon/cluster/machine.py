"""The cluster core behind one door."""

from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from .context import Context
from .coordinator import Coordinator
from .effects import ChangeRejected
from .election import Election
from .errors import LocalClusterMisuse
from .events import (
    CandidateVerified,
    Event,
    FactsChanged,
    LoadWanted,
    LocalHealth,
    PlanComputed,
    PlanRefused,
    PrepareChecked,
    RequestFailed,
    RequestReceived,
    ResponseReceived,
    Tick,
    UnloadWanted,
    WorkerReported,
    WorkerStopped,
)
from .messages import (
    CommitRequest,
    CommitResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    Member,
    PrepareRequest,
    PrepareResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    Response,
    SetPeersRequest,
    SetPeersResponse,
)
from .quorum import founding_document
from .replica import Replica
from .view import ClusterView, Liveness, ServingState

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .effects import Effect
    from .messages import NodeFacts, WantedModel, WorkerReport
    from .settings import ClusterSettings
    from .state import PersistentState


class ClusterMachine:
    """Election, membership and plans of one node, without I/O, clock or randomness of its own.

    Args:
        node_id: This node, from its certificate.
        boot_nonce: Drawn at random at each start of the daemon.
        facts: This node's machine.
        addresses: host:port that others reach this node at, best first.
        persistent: What was stored last; `PersistentState()` on the first start.
        settings: Times and limits.
        rng: For election timeouts; seeded by the caller.
        key_source: Gives 32 fresh secret random bytes at each call: the key of an epoch.
        now: The time, in seconds of a clock that never goes back and counts sleep.
        founder: Whether this node may found the cluster where it has no document.
        bootstrap_expect: Nodes, itself included, that the founder waits for.
    """

    def __init__(
        self,
        *,
        node_id: str,
        boot_nonce: int,
        facts: "NodeFacts",
        addresses: tuple[str, ...],
        persistent: "PersistentState",
        settings: "ClusterSettings",
        rng: "random.Random",
        key_source: "Callable[[], bytes]",
        now: float,
        founder: bool,
        bootstrap_expect: int = 1,
    ) -> None:
        if bootstrap_expect < 1:
            raise LocalClusterMisuse(f"bootstrap_expect must be at least 1, got {bootstrap_expect}")
        self._context = Context(
            node_id=node_id,
            boot_nonce=boot_nonce,
            facts=facts,
            addresses=addresses,
            state=persistent,
            settings=settings,
            rng=rng,
            key_source=key_source,
            now=now,
        )
        self._founder = founder
        self._bootstrap_expect = bootstrap_expect
        self._candidates: dict[str, tuple[CandidateVerified, float]] = {}
        self._coordinator: Coordinator | None = None
        self._election = Election(self._context, self._on_elected, self._on_stepped_down)
        self._replica = Replica(self._context, self._election)

    def step(self, event: Event, now: float) -> "list[Effect]":
        """Take one event and return what to do, in order; the only way in.

        Args:
            event: What happened.
            now: The time, on the clock of the constructor.

        Raises:
            LocalClusterMisuse: The event is not one that a shell may give.
        """
        context = self._context
        context.begin(now)
        if self._coordinator is not None and not self._coordinator.has_lease():
            self._election.step_down("no quorum answered within the lease")
        self._handle(event)
        if self._coordinator is not None and not isinstance(event, Tick | ResponseReceived | RequestFailed):
            self._coordinator.touch()
        self._found()
        self._election.tick()
        while True:
            while context.inbox:
                own = context.inbox.popleft()
                if isinstance(own, RequestReceived):
                    self._on_request(own)
                else:
                    self._on_response(own)
            if self._coordinator is not None:
                self._coordinator.advance()
            if not context.inbox:
                return context.take_effects()

    def next_deadline(self) -> float | None:
        """When `step(Tick(), now)` is due at the latest; None where only an event can change anything."""
        if self._coordinator is not None:
            return self._coordinator.next_deadline()
        if self._may_found():
            return self._context.now
        return self._election.deadline

    @property
    def view(self) -> ClusterView:
        """A picture of the machine as it is now."""
        state = self._context.state
        liveness, heartbeat_ms, workers = self._members()
        refusal_json, refusal_reason = self._replica.told_refusal_json, ""
        serving_state = cast("ServingState", self._replica.told_serving_state or "idle")
        if self._coordinator is not None:
            serving_state = self._coordinator.serving_state
            refusal_json = self._coordinator.planning.refusal_json
            refusal_reason = self._coordinator.planning.refusal_reason
        return ClusterView(
            node_id=self._context.node_id,
            role=self._election.role,
            generation=state.generation,
            term=state.term,
            coordinator_node_id=self._election.coordinator_id,
            has_quorum=bool(self._election.coordinator_id) and self._election.hears_coordinator,
            document=self._replica.committed,
            stored_document=state.document,
            liveness=MappingProxyType(liveness),
            heartbeat_ms=MappingProxyType(heartbeat_ms),
            workers=MappingProxyType(workers),
            promised=state.promised,
            active=state.active,
            active_plan=state.active_plan,
            serving_state=serving_state,
            refusal_json=refusal_json,
            refusal_reason=refusal_reason,
            transport_failures=MappingProxyType(
                self._coordinator.planning.transport_failures if self._coordinator is not None else {}
            ),
        )

    def _members(self) -> "tuple[dict[str, Liveness], dict[str, float], dict[str, WorkerReport]]":
        own = self._context.node_id
        told = self._replica.told_members
        if self._coordinator is not None:
            told = {status.node_id: status for status in self._coordinator.statuses()}
        liveness: dict[str, Liveness] = {}
        document = self._context.state.document
        for member in document.members if document else ():
            status = told.get(member.node_id) if self._election.hears_coordinator else None
            liveness[member.node_id] = cast("Liveness", status.liveness) if status else "unknown"
        if document is not None and document.member(own) is not None:
            liveness[own] = "incompatible" if liveness[own] == "incompatible" else "alive"
        heartbeat_ms = {n: s.heartbeat_ms for n, s in told.items() if s.heartbeat_ms >= 0}
        workers = {n: s.worker for n, s in told.items() if s.worker is not None}
        if self._replica.slot.report is not None:
            workers[own] = self._replica.slot.report
        return liveness, heartbeat_ms, workers

    def _handle(self, event: Event) -> None:  # noqa: C901, PLR0912  one arm for each kind of event
        match event:
            case Tick():
                pass
            case RequestReceived():
                if event.request_id < 0:
                    raise LocalClusterMisuse(f"request ids are not negative, got {event.request_id}")
                self._on_request(event)
            case ResponseReceived():
                self._on_response(event)
            case RequestFailed():
                if self._coordinator is not None:
                    self._coordinator.on_request_failed(event.peer, event.message)
            case CandidateVerified():
                if event.node_id != self._context.node_id:
                    self._candidates[event.node_id] = (event, self._context.now)
            case PlanComputed():
                if self._coordinator is not None:
                    self._coordinator.planning.on_computed(event.request_id, event.deployment)
            case PlanRefused():
                if self._coordinator is not None:
                    self._coordinator.planning.on_refused(event.request_id, event.reason, event.refusal_json)
            case LoadWanted():
                self._on_change(event.change_id, event.wanted)
            case UnloadWanted():
                self._on_change(event.change_id, None)
            case PrepareChecked():
                self._replica.on_prepare_checked(event.epoch, ok=event.ok, reason=event.reason)
            case WorkerReported():
                self._replica.slot.on_report(event.report)
            case WorkerStopped():
                self._replica.slot.on_stopped(event.epoch)
            case FactsChanged():
                self._context.facts = event.facts
            case LocalHealth():
                self._context.health_score = max(0, event.score)
                if event.slept:
                    self._election.woke_up()
            case _:
                raise LocalClusterMisuse(f"{event!r} is not an event of the cluster core")

    def _on_request(self, event: RequestReceived) -> None:
        match event.message:
            case RequestVoteRequest() as request:
                self._election.on_vote_request(event.request_id, event.sender, request)
            case HeartbeatRequest() as request:
                self._replica.on_heartbeat(event.request_id, event.sender, request)
            case PrepareRequest() as request:
                self._replica.on_prepare(event.request_id, event.sender, request)
            case CommitRequest() as request:
                self._replica.on_commit(event.request_id, event.sender, request)
            case SetPeersRequest() as request:
                self._replica.on_set_peers(event.request_id, event.sender, request)
            case _:
                raise LocalClusterMisuse(f"{event.message!r} is not a request between nodes")

    def _on_response(self, event: ResponseReceived) -> None:
        message: Response = event.message
        if isinstance(message, RequestVoteResponse):
            self._election.on_vote_response(event.peer, message)
            return
        # Whoever leads a term that somebody has left behind must know.
        self._election.observe((message.generation, message.term))
        coordinator = self._coordinator
        if coordinator is None:
            return
        match message:
            case HeartbeatResponse():
                coordinator.on_heartbeat_response(event.peer, message, event.round_trip_ms)
            case PrepareResponse() | CommitResponse() | SetPeersResponse():
                coordinator.on_response(event.peer, message)
            case _:
                raise LocalClusterMisuse(f"{message!r} is not a response between nodes")

    def _on_change(self, change_id: int, wanted: "WantedModel | None") -> None:
        if self._coordinator is not None:
            self._coordinator.load(change_id, wanted)
        elif self._election.coordinator_id and self._election.hears_coordinator:
            who = self._election.coordinator_id
            self._context.emit(ChangeRejected(change_id, "NOT_COORDINATOR", f"ask the coordinator, {who}"))
        else:
            self._context.emit(
                ChangeRejected(
                    change_id,
                    "NO_QUORUM",
                    "no coordinator is followed by a quorum; nothing can be changed now",
                )
            )

    def _may_found(self) -> bool:
        if not self._founder or self._context.state.document is not None:
            return False
        candidates = [candidate for candidate, _ in self._candidates.values()]
        if any(candidate.has_cluster for candidate in candidates):
            return False  # there is a cluster already: wait to be admitted
        return len(candidates) + 1 >= self._bootstrap_expect

    def _found(self) -> None:
        """Make the first document, once enough nodes are there; it is then voted on as any other."""
        if not self._may_found():
            return
        context = self._context
        own = Member(context.node_id, context.addresses, context.facts, voter=True, discovery="self")
        others = [
            Member(
                node_id,
                candidate.addresses,
                candidate.facts,
                voter=candidate.facts.versions == context.facts.versions,
                discovery=candidate.discovery,
            )
            for node_id, (candidate, _) in self._candidates.items()
        ]
        document = founding_document(own, others, context.settings.max_voters)
        context.persist(generation=max(1, context.state.generation))
        self._replica.store(document)
        context.announce("cluster founded", nodes=[member.node_id for member in document.members])
        self._election.campaign_soon()

    def _on_elected(self, asked_at: float, voters: frozenset[str]) -> None:
        self._replica.forget_told()
        self._coordinator = Coordinator(self._context, self._replica, self._candidates, asked_at, voters)

    def _on_stepped_down(self, reason: str) -> None:  # noqa: ARG002  the election announces it
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is not None:
            coordinator.changes.abandon()
