"""The cluster core behind one door."""

from typing import TYPE_CHECKING

from .context import Context
from .coordinator import Coordinator
from .effects import ChangeRejected
from .election import Election
from .errors import LocalClusterMisuse
from .events import (
    CandidateVerified,
    ConnectionLost,
    DrainWanted,
    Event,
    EvictWanted,
    FactsChanged,
    HandOverWanted,
    LeaveCancelled,
    LeaveWanted,
    LoadWanted,
    LocalHealth,
    PlanComputed,
    PlanRefused,
    PrepareChecked,
    RecoverWanted,
    RequestFailed,
    RequestReceived,
    ResponseReceived,
    Tick,
    UndrainWanted,
    UnloadWanted,
    WorkerReported,
    WorkerStopped,
)
from .flaps import FlapRecord
from .goodbye import Goodbye
from .messages import (
    CommitRequest,
    HeartbeatRequest,
    HeartbeatResponse,
    LeaveRequest,
    LeaveResponse,
    Member,
    PrepareRequest,
    ProbeRequest,
    ProbeResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    Response,
    SetPeersRequest,
    TransferLeadershipRequest,
)
from .picture import picture_of
from .probes import Probes
from .quorum import founding_document
from .recovery import Recovery
from .refusals import refusal_of
from .replica import Replica
from .standalone import Standalone

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .effects import Effect
    from .messages import NodeFacts
    from .settings import ClusterSettings
    from .state import PersistentState
    from .view import ClusterView

_NO_NEWS = (Tick, ResponseReceived, RequestFailed, ConnectionLost)
"""Events after which the coordinator itself says whether there is news."""


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
        self._flaps = FlapRecord(settings)
        self._probes = Probes(self._context)
        self._goodbye = Goodbye(self._context, self._election)
        self._standalone = Standalone(self._context, self._election, self._replica)
        self._recovery = Recovery(self._context, self._election, self._replica)
        self._own_doubles: set[int] = set()
        self._has_left_drained = False
        self._due = self._find_deadline()

    def step(  # noqa: C901  one line after the other: the path of every event
        self, event: Event, now: float
    ) -> "list[Effect]":
        """Take one event and return what to do, in order; the only way in.

        Args:
            event: What happened.
            now: The time, on the clock of the constructor.

        Raises:
            LocalClusterMisuse: The event is not one that a shell may give.
        """
        context = self._context
        due = self._due
        context.begin(now)
        if self._coordinator is not None and not self._coordinator.has_lease():
            self._election.step_down("no quorum answered within the lease")
        if due is not None and context.now - due > context.settings.lateness_seconds:
            self._election.was_away()
            self._standalone.was_away()
        self._handle(event)
        if self._coordinator is not None and not isinstance(event, _NO_NEWS):
            self._coordinator.touch()
        if self._founder:
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
                break
        self._recovery.finish()
        self._go_drained()
        coordinator = self._coordinator
        if self._goodbye.deadline is not None:
            self._goodbye.advance(can_hand_over=coordinator is not None and coordinator.transfer.is_possible)
        self._standalone.advance()
        self._due = self._find_deadline()
        return context.take_effects()

    def next_deadline(self) -> float | None:
        """When `step(Tick(), now)` is due at the latest; None where only an event can change anything."""
        return self._due

    def _find_deadline(self) -> float | None:
        if self._coordinator is not None:
            return self._coordinator.next_deadline()
        if self._founder and self._may_found():
            return self._context.now
        due = self._election.deadline
        at = self._goodbye.deadline
        if at is not None and (due is None or at < due):
            due = at
        at = self._standalone.deadline()
        if at is not None and (due is None or at < due):
            due = at
        return due

    @property
    def view(self) -> "ClusterView":
        """A picture of the machine as it is now."""
        return picture_of(
            self._context,
            self._election,
            self._replica,
            self._standalone,
            self._coordinator,
            has_double=bool(self._own_doubles),
        )

    def _is_denied(self, node_id: str) -> bool:
        document = self._context.state.document
        return document is not None and node_id in document.denied_node_ids

    def _handle(self, event: Event) -> None:  # noqa: C901, PLR0912, PLR0915  one arm for each kind of event
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
                if isinstance(event.message, ProbeRequest) and event.message.target_node_id == event.peer:
                    self._probes.on_outcome(event.peer, reached=False)
                elif self._coordinator is not None:
                    self._coordinator.on_request_failed(event.peer, event.message, event.kind)
            case ConnectionLost():
                if self._coordinator is not None:
                    self._coordinator.on_connection_lost(event.peer)
            case CandidateVerified():
                self._on_candidate(event)
            case PlanComputed():
                self._standalone.on_computed(event.request_id, event.deployment)
                if self._coordinator is not None:
                    self._coordinator.on_computed(event.request_id, event.deployment)
            case PlanRefused():
                self._standalone.on_refused(event.request_id, event.reason, event.refusal_json)
                if self._coordinator is not None:
                    self._coordinator.on_refused(event.request_id, event.reason, event.refusal_json)
            case LoadWanted() | UnloadWanted() | EvictWanted() | DrainWanted() | UndrainWanted():
                self._on_change(event)
            case HandOverWanted():
                if self._coordinator is not None:
                    self._coordinator.hand_over()
            case RecoverWanted():
                self._recovery.begin(event.change_id)
            case LeaveWanted():
                self._has_left_drained = False
                self._goodbye.begin(event.reason)
            case LeaveCancelled():
                self._goodbye.cancel()
            case PrepareChecked():
                if event.epoch.is_local:
                    self._standalone.on_checked(event.epoch, ok=event.ok, reason=event.reason)
                else:
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
                    self._standalone.was_away()
            case _:
                raise LocalClusterMisuse(f"{event!r} is not an event of the cluster core")

    def _on_request(self, event: RequestReceived) -> None:  # noqa: C901  one arm for each kind
        is_double = event.request_id >= 0 and event.sender == self._context.node_id
        if is_double or self._is_denied(event.sender):
            reason = "another daemon has this identity" if is_double else f"{event.sender} was evicted"
            self._context.reply(event.request_id, refusal_of(event.message, reason))
            return
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
            case ProbeRequest() as request:
                is_led = event.sender == self._election.coordinator_id
                self._probes.on_request(event.request_id, request, from_coordinator=is_led)
            case LeaveRequest() as request:
                if self._coordinator is not None:
                    self._coordinator.on_leave(event.request_id, event.sender, request.reason)
                else:
                    self._context.reply(event.request_id, LeaveResponse(*self._context.state.ballot))
            case TransferLeadershipRequest() as request:
                self._election.on_transfer(event.request_id, event.sender, (request.generation, request.term))
            case _:
                raise LocalClusterMisuse(f"{event.message!r} is not a request between nodes")

    def _on_response(self, event: ResponseReceived) -> None:
        message: Response = event.message
        if self._is_denied(event.peer):
            # Its term is no matter of the cluster any more; only that it has heard of its eviction is.
            self._probes.on_outcome(event.peer, reached=False)
            if self._coordinator is not None and isinstance(message, HeartbeatResponse):
                self._coordinator.on_heartbeat_response(event.peer, message, event.round_trip_ms)
            return
        if isinstance(message, RequestVoteResponse):
            self._election.on_vote_response(event.peer, message)
            return
        # Whoever leads a term that somebody has left behind must know.
        self._election.observe((message.generation, message.term))
        if isinstance(message, HeartbeatResponse):
            if self._coordinator is not None:
                self._coordinator.on_heartbeat_response(event.peer, message, event.round_trip_ms)
        elif isinstance(message, ProbeResponse) and message.target_node_id == event.peer:
            self._probes.on_outcome(event.peer, reached=message.reached)
        elif isinstance(message, LeaveResponse):
            if message.heard:
                self._goodbye.on_heard()
        elif self._coordinator is not None:
            self._coordinator.on_any_response(event.peer, message, event.round_trip_ms)

    def _on_candidate(self, candidate: CandidateVerified) -> None:
        node_id, nonce = candidate.node_id, candidate.boot_nonce
        if node_id == self._context.node_id:
            if nonce not in {self._context.boot_nonce, *self._own_doubles}:
                self._own_doubles.add(nonce)
                self._context.announce("duplicate identity", node_id=node_id, refused=len(self._own_doubles))
            elif nonce == self._context.boot_nonce and candidate.discovery == "self":
                self._context.addresses = candidate.addresses
            return
        if self._is_denied(node_id):
            return
        if self._coordinator is not None:
            self._coordinator.watch.meet(node_id, nonce)
        self._candidates[node_id] = (candidate, self._context.now)

    def _on_change(
        self, event: "LoadWanted | UnloadWanted | EvictWanted | DrainWanted | UndrainWanted"
    ) -> None:
        change_id = event.change_id
        if self._coordinator is not None:
            if isinstance(event, EvictWanted):
                self._coordinator.evict(change_id, event.node_id)
            elif isinstance(event, DrainWanted | UndrainWanted):
                self._coordinator.drains.begin(event, is_undo=isinstance(event, UndrainWanted))
            else:
                self._coordinator.load(change_id, event.wanted if isinstance(event, LoadWanted) else None)
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

    def _go_drained(self) -> None:
        """Say goodbye once this node is drained and is to leave; take it back once that is undone.

        Who has left neither campaigns nor promises, so it comes back where nobody is heard to lead.
        """
        document, own = self._replica.committed, None
        if document is not None:
            own = document.by_node_id.get(self._context.node_id)
        is_led = bool(self._election.coordinator_id) and self._election.hears_coordinator
        if own is None or not own.drain_leaves or not is_led:
            if self._has_left_drained:
                self._has_left_drained = False
                self._goodbye.cancel()
            return
        is_planned = (
            document is not None and document.plan is not None and own.node_id in document.plan.node_ids
        )
        slot = self._replica.slot
        is_busy = is_planned or slot.running is not None or slot.is_changing or self._coordinator is not None
        if not is_busy and not self._context.is_leaving:
            self._has_left_drained = True
            self._goodbye.begin("it was drained")

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
        were_there = self._replica.were_there()
        self._replica.forget_told()
        self._coordinator = Coordinator(
            self._context, self._replica, self._candidates, asked_at, voters, self._flaps
        )
        self._coordinator.watch.were_there(were_there)

    def _on_stepped_down(self, reason: str) -> None:  # noqa: ARG002  the election announces it
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is not None:
            coordinator.abandon()
