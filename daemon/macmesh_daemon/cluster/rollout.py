"""From a committed plan to one that serves: COMMIT, LOADED, SET_PEERS, READY; and what stands in its way.

Nothing here asks who made the plan. A new coordinator drives the plan of the old one on from wherever its
members say that it is, under its old epoch, and touches no worker that runs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .failures import FailureRecord
from .messages import (
    CommitRequest,
    CommitResponse,
    Epoch,
    PeerAddress,
    Plan,
    PrepareRequest,
    PrepareResponse,
    Request,
    SetPeersRequest,
    SetPeersResponse,
    WorkerReport,
    WorkerState,
)
from .tracker import GONE

if TYPE_CHECKING:
    from .context import Context
    from .coordinator import Coordinator
    from .watch import MemberEpochs

_ENDED = {WorkerState.FAILED, WorkerState.STOPPED}
_LOADED = {WorkerState.LOADED, WorkerState.READY}
_NOBODY = ""
_GONE_WORDS = {"left": "gone: it said goodbye", "cut": "cut off from the coordinator"}
_BEATS_TO_TELL = 4

GROUP_TRANSPORTS = frozenset({"verbs", "jaccl"})
"""The transports that join all stages or none, and that a plan can do without."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the committed plan cannot go on.

    Attributes:
        reason: For people.
        not_before: When a new plan may be made.
        culprit: Whose fault it is; "" where nobody's in particular.
        counts: Whether it counts as a failure of the culprit.
        excludes: Whether the culprit is left out for a while.
        transport: What was wrong with the plan's group transport, where that is the reason.
    """

    reason: str
    not_before: float = 0.0
    culprit: str = _NOBODY
    counts: bool = False
    excludes: bool = False
    transport: str = ""


class Rollout:
    """Drives the committed plan to READY and says when it cannot get or stay there."""

    def __init__(self, context: "Context", coordinator: "Coordinator") -> None:
        self._context = context
        self._coordinator = coordinator
        self.failures = FailureRecord(context.settings)
        self._epoch: Epoch | None = None
        self._reset()

    def _reset(self) -> None:
        self._busy_until: dict[str, float] = {}
        self._waiting_since: dict[str, float] = {}
        self._failed_at: dict[str, float] = {}
        self._peers: SetPeersRequest | None = None
        self._peers_told: set[str] = set()
        self._connecting_since: float | None = None
        self._is_blamed = False
        self._was_ready = False
        self.is_ready = False

    def advance(self) -> None:
        """Do the next thing for each member of the plan. Called with a committed document."""
        plan = self._plan()
        if plan is None or plan.epoch is None:
            return
        if plan.epoch != self._epoch:
            self._epoch = plan.epoch
            self._reset()
        reports: list[tuple[str, WorkerReport]] = []
        for node_id in plan.node_ids:
            known = self._coordinator.epochs_of(node_id)
            if known is None:
                continue
            self._note(node_id, known, plan.epoch)
            if known.active != plan.epoch:
                self._activate(node_id, known, plan, plan.epoch)
            elif known.worker is not None and known.worker.epoch == plan.epoch:
                reports.append((node_id, known.worker))
        if plan.node_ids and len(reports) == len(plan.node_ids):
            self._connect(plan.epoch, reports)

    def problem(self) -> Problem | None:  # noqa: PLR0911  one rule, one return
        """What stands in the way of the committed plan, the worst first; None where nothing does."""
        plan = self._plan()
        if plan is None or plan.epoch is None or not plan.node_ids or plan.epoch != self._epoch:
            return None
        for node_id in plan.node_ids:
            if self._coordinator.document.member(node_id) is None:
                return Problem(f"{node_id} is no member any more")
            verdict = self._coordinator.liveness(node_id)
            if verdict in GONE or (verdict == "cut" and not self.is_ready):
                return Problem(f"{node_id} is {_GONE_WORDS.get(verdict, verdict)}")
            member = self._coordinator.document.member(node_id)
            if member is not None and member.evicting:
                return Problem(f"{node_id} is being evicted")
        for node_id in plan.node_ids:
            known = self._coordinator.epochs_of(node_id)
            found = self._trouble_of(node_id, known, plan.epoch) if known else None
            if found is not None:
                return found
        if self._failed_at:
            return self._failure_problem(plan)
        return self._connect_problem(plan)

    def blame(self, problem: Problem) -> None:
        """Count the problem once per epoch, now that a new plan is being made because of it."""
        plan = self._plan()
        if not problem.counts or self._is_blamed or plan is None:
            return
        self._is_blamed = True
        if self.failures.record(problem.culprit, _digest(plan), self._context.now):
            self._context.announce("node quarantined for model", node_id=problem.culprit)

    def on_answer(self, peer: str, response: PrepareResponse | CommitResponse | SetPeersResponse) -> None:
        """Take in an answer about the committed plan; the next heartbeat tells the rest."""
        if response.epoch != self._epoch:
            return
        is_done = isinstance(response, CommitResponse) and response.committed
        # What it has done, its next heartbeat tells; what it has refused is asked for again a little later.
        beats = _BEATS_TO_TELL if is_done else 1
        self._busy_until[peer] = self._context.now + beats * self._context.settings.heartbeat_seconds
        if isinstance(response, SetPeersResponse) and response.accepted:
            self._peers_told.add(peer)

    def on_request_failed(self, peer: str, request: Request) -> None:
        """Take in that a call about the committed plan came to nothing: it is made again a little later."""
        epoch = request.plan.epoch if isinstance(request, PrepareRequest) and request.plan else None
        if isinstance(request, (CommitRequest, SetPeersRequest)):
            epoch = request.epoch
        if epoch is not None and epoch == self._epoch:
            self._busy_until[peer] = self._context.now + self._context.settings.heartbeat_seconds

    def _plan(self) -> Plan | None:
        return self._coordinator.document.plan

    def _note(self, node_id: str, known: "MemberEpochs", epoch: Epoch) -> None:
        """Note since when a member keeps the plan waiting, and when its worker ended."""
        now = self._context.now
        if known.active == epoch or self._coordinator.liveness(node_id) != "alive":
            self._waiting_since.pop(node_id, None)
        else:
            self._waiting_since.setdefault(node_id, now)
        worker = known.worker
        if (
            worker is not None
            and worker.epoch == epoch
            and worker.state in _ENDED
            and node_id not in self._failed_at
        ):
            self._failed_at[node_id] = now
            self._context.announce(
                "worker ended",
                node_id=node_id,
                epoch=str(epoch),
                state=worker.state.value,
                error=worker.error,
            )

    def _activate(self, node_id: str, known: "MemberEpochs", plan: Plan, epoch: Epoch) -> None:
        generation, term = self._context.state.ballot
        # A plan of this term was stored because all its members had promised it, whatever they told last.
        if known.promised == epoch or (epoch.generation, epoch.term) == (generation, term):
            self._call(node_id, CommitRequest(term, epoch, generation))
        elif known.promised is None or known.promised < epoch:
            self._call(node_id, PrepareRequest(term, plan, generation))

    def _connect(self, epoch: Epoch, reports: list[tuple[str, WorkerReport]]) -> None:
        """Tell the workers of each other once all are loaded; they are ready when they have connected."""
        states = {report.state for _, report in reports}
        if states == {WorkerState.READY}:
            if not self.is_ready:
                self.is_ready = self._was_ready = True
                self._connecting_since = None
                self._context.announce("plan ready", epoch=str(epoch))
            return
        self.is_ready = False
        if not states <= _LOADED:
            return
        if self._connecting_since is None:
            self._connecting_since = self._context.now
        if self._peers is None:
            if WorkerState.READY in states:
                return  # they connect with a key of the coordinator before; a second key would part them
            generation, term = self._context.state.ballot
            peers = tuple(
                PeerAddress(r.stage_index, node_id, r.control_address, r.tensor_address)
                for node_id, r in reports
            )
            self._peers = SetPeersRequest(term, epoch, peers, self._context.key_source(), generation)
            self._context.announce("peers told", epoch=str(epoch))
        for node_id, _ in reports:
            if node_id not in self._peers_told:
                self._call(node_id, self._peers)

    def _call(self, node_id: str, request: Request) -> None:
        """Call a member, unless a call is under way or it would not answer."""
        now = self._context.now
        if self._busy_until.get(node_id, now) > now or self._coordinator.liveness(node_id) in GONE:
            return
        deadline = self._context.settings.plan_rpc_deadline_seconds
        self._busy_until[node_id] = now + 2 * deadline
        self._context.send(node_id, request, deadline)

    def _trouble_of(self, node_id: str, known: "MemberEpochs", epoch: Epoch) -> Problem | None:
        now, settings = self._context.now, self._context.settings
        if known.active == epoch:
            if known.worker is None or known.worker.epoch != epoch:
                return Problem(f"the worker of {node_id} is gone: its daemon was started anew")
            track = self._coordinator.watch.tracks.get(node_id)
            progress = track.progress if track else None
            is_loading = known.worker.state in {WorkerState.STARTING, WorkerState.LOADING}
            if is_loading and progress is not None and now - progress[2] > settings.load_stall_seconds:
                return Problem(f"the worker of {node_id} loads no further", culprit=node_id, counts=True)
            return None
        if known.promised is not None and known.promised > epoch:
            return Problem(f"{node_id} has promised {known.promised} and cannot go back to {epoch}")
        if now - self._waiting_since.get(node_id, now) > 2 * settings.plan_rpc_deadline_seconds:
            return Problem(f"{node_id} does not commit {epoch}", culprit=node_id, excludes=True)
        return None

    def _failure_problem(self, plan: Plan) -> Problem:
        """One worker's end ends its neighbours': blame the first that did not end for the loss of another."""
        own_fault = [node_id for node_id in self._failed_at if not self._lost_a_peer(node_id)]
        culprit = next(iter(own_fault or self._failed_at))
        backoff = self.failures.backoff_seconds(_digest(plan), min(self._failed_at.values()))
        transport = self._transport_failure(plan, own_fault, culprit)
        # Without its transport the next plan is another one: nothing is gained by waiting.
        is_at_once = self._is_blamed or bool(transport)
        return Problem(
            f"the worker of {culprit} ended",
            not_before=min(self._failed_at.values()) + (0.0 if is_at_once else backoff),
            culprit=culprit,
            counts=not transport,
            transport=transport,
        )

    def _transport_failure(self, plan: Plan, own_fault: list[str], culprit: str) -> str:
        """Why the next plan must do without the group transport; "" where it need not.

        Its set-up may end a worker without a word: whatever ends one while they connect is put down to it.
        """
        if not group_transport(plan):
            return ""
        for node_id in own_fault or self._failed_at:
            worker = self._coordinator.worker_of(node_id)
            if worker is not None and worker.transport_failure:
                return worker.transport_failure
        worker = self._coordinator.worker_of(culprit)
        if worker is not None and own_fault and self._connecting_since is not None and not self._was_ready:
            return f"the worker of {culprit} ended in its set-up: {worker.error}"
        return ""

    def _lost_a_peer(self, node_id: str) -> bool:
        worker = self._coordinator.worker_of(node_id)
        return worker is not None and worker.peer_lost

    def _connect_problem(self, plan: Plan) -> Problem | None:
        since = self._connecting_since
        if self.is_ready or since is None:
            return None
        timeout = self._context.settings.connect_timeout_seconds
        if self._context.now - since <= timeout:
            return None
        backoff = self.failures.backoff_seconds(_digest(plan), self._context.now)
        reason = "the workers do not connect to each other"
        transport = reason if group_transport(plan) and not self._was_ready else ""
        not_before = since + timeout + (0.0 if self._is_blamed or transport else backoff)
        return Problem(reason, not_before=not_before, counts=not transport, transport=transport)


def group_transport(plan: Plan) -> str:
    """The transport of a plan that joins all its stages or none; "" where it has no such."""
    return next((d.transport for d in plan.deployments if d.transport in GROUP_TRANSPORTS), "")


def _digest(plan: Plan) -> str:
    return next((d.model.digest for d in plan.deployments if d.model is not None), "")
