"""A node as a member: it stores documents, promises epochs and makes them active."""

import dataclasses
from typing import TYPE_CHECKING

from .effects import CheckPrepare, GivePeers
from .messages import (
    Ballot,
    ClusterDocument,
    CommitRequest,
    CommitResponse,
    Epoch,
    HeartbeatRequest,
    HeartbeatResponse,
    MemberStatus,
    Plan,
    PrepareRequest,
    PrepareResponse,
    SetPeersRequest,
    SetPeersResponse,
    Version,
    WorkerState,
)
from .worker_slot import WorkerSlot

if TYPE_CHECKING:
    from .context import Context
    from .election import Election

_CAN_TAKE_PEERS = {WorkerState.STARTING, WorkerState.LOADING, WorkerState.LOADED, WorkerState.READY}
_THERE = {"alive", "suspect", "incompatible"}


@dataclasses.dataclass(slots=True)
class _Check:
    """A PREPARE that the shell is checking."""

    ballot: Ballot
    plan: Plan
    epoch: Epoch
    request_ids: list[int]


class Replica:
    """Answers the coordinator, which may be this node itself.

    Whatever names a ballot goes through `Election.accept_coordinator` first, so nothing here ever acts for a
    coordinator whose term is over.
    """

    def __init__(self, context: "Context", election: "Election") -> None:
        self._context = context
        self._election = election
        self._check: _Check | None = None
        self._peers_given: SetPeersRequest | None = None
        self.slot = WorkerSlot(context)
        state = context.state
        is_committed = state.document is not None and state.document_version == state.commit_version
        #: The newest document known to be committed; None where it is not known.
        self.committed: ClusterDocument | None = state.document if is_committed else None
        self._previous: ClusterDocument | None = None
        #: Whose heartbeat was taken last, and when; None where no other node's was.
        self._led: tuple[str, float] | None = None
        self.forget_told()

    def forget_told(self) -> None:
        """Forget what a coordinator told: this node leads now."""
        self._told: tuple[MemberStatus, ...] = ()
        self.told_serving_state = ""
        self.told_refusal_json = ""
        self.told_refusal_reason = ""
        self.told_kept_reason = ""

    @property
    def told_members(self) -> dict[str, MemberStatus]:
        """What the coordinator last told of every member."""
        return {status.node_id: status for status in self._told}

    def were_there(self) -> dict[str, float]:
        """Who was there under the coordinator before, itself included, and when that was last heard.

        Nobody, where that is longer ago than makes a member dead: who was there then may be about to start now.
        """
        if self._led is None:
            return {}
        leader, heard_at = self._led
        if self._context.now - heard_at >= self._context.settings.dead_after_seconds:
            return {}
        return dict.fromkeys({leader, *(s.node_id for s in self._told if s.liveness in _THERE)}, heard_at)

    def store(self, document: ClusterDocument) -> None:
        """Store a newer document durably."""
        self._previous = self._context.state.document
        self._context.persist(document=document)

    def learn_commit(self, version: Version) -> None:
        """Learn that a quorum has stored ``version``; a plan without this node frees its worker."""
        state = self._context.state
        if version <= state.commit_version:
            return
        known = next((d for d in (state.document, self._previous) if d and d.version == version), None)
        if known is None:
            return
        self._context.remember(commit_generation=version[0], commit_term=version[1], commit_seq=version[2])
        self.committed = known
        self._release()

    def _release(self) -> None:
        """End this node's part in an older plan, once a committed plan without it has taken its place."""
        plan = self.committed.plan if self.committed else None
        active = self._context.state.active
        if plan is None or plan.epoch is None or plan.stage_of(self._context.node_id) is not None:
            return
        if active is not None and active < plan.epoch and not self.slot.is_activating(plan.epoch):
            self.slot.activate(plan, None)

    def on_heartbeat(self, request_id: int, sender: str, request: HeartbeatRequest) -> None:
        """Follow, store what is newer, and tell how this node is."""
        ballot = (request.generation, request.term)
        refused = self._election.accept_coordinator(sender, ballot)
        if not refused:
            document = request.document
            if (
                document is not None
                and document.version[:2] == ballot
                and document.version > self._context.state.document_version
            ):
                self.store(document)
                self._election.restart_timer()
            self.learn_commit(request.commit_version)
            if sender != self._context.node_id:
                self._led = (sender, self._context.now)
            if request.members and sender != self._context.node_id:
                self._told = request.members
                self.told_serving_state = request.serving_state
                self.told_refusal_json = request.refusal_json
                self.told_refusal_reason = request.refusal_reason
                self.told_kept_reason = request.kept_reason
        context = self._context
        state = context.state
        version = state.document_version
        worker = self.slot.report
        is_local = worker is not None and worker.epoch is not None and worker.epoch.is_local
        context.reply(
            request_id,
            HeartbeatResponse(
                generation=state.generation,
                term=state.term,
                round=request.round,
                document_generation=version[0],
                document_term=version[1],
                document_seq=version[2],
                promised=state.promised,
                active=state.active,
                worker=None if is_local else worker,
                accepted=not refused,
                boot_nonce=context.boot_nonce,
                facts=context.facts,
                leaving=context.is_leaving,
            ),
        )

    def on_prepare(self, request_id: int, sender: str, request: PrepareRequest) -> None:
        """Refuse an epoch below the promise; check a newer one; then promise it durably."""
        ballot = (request.generation, request.term)
        plan = request.plan
        if plan is None or plan.epoch is None:
            self._answer_prepare([request_id], None, "the request names no plan")
            return
        refused = self._election.accept_coordinator(sender, ballot) or self._cannot_promise(
            plan, plan.epoch, ballot
        )
        if refused:
            self._answer_prepare([request_id], plan.epoch, refused)
        elif plan.epoch == self._context.state.promised:
            self._answer_prepare([request_id], plan.epoch, "")
        elif self._check is not None and self._check.plan == plan and self._check.ballot == ballot:
            self._check.request_ids.append(request_id)
        else:
            if self._check is not None:
                self._answer_prepare(
                    self._check.request_ids, self._check.epoch, "superseded by a newer PREPARE"
                )
            self._check = _Check(ballot, plan, plan.epoch, [request_id])
            mine = plan.stage_of(self._context.node_id)
            if mine is None:
                self.on_prepare_checked(plan.epoch, ok=True, reason="")
            else:
                self._context.emit(CheckPrepare(plan, mine[1], request.read_ahead_seconds))

    def _cannot_promise(self, plan: Plan, epoch: Epoch, ballot: Ballot) -> str:
        promised = self._context.state.promised
        if epoch.is_local:
            return f"epoch {epoch} is of no cluster"
        if self._context.is_leaving:
            return "this node goes down"
        if (epoch.generation, epoch.term) > ballot:
            return f"epoch {epoch} is not of a term up to {ballot[1]}"
        if promised is not None and epoch < promised:
            return f"epoch {promised} is promised"
        if epoch == promised and plan != self._context.state.promised_plan:
            return f"another plan is promised under epoch {epoch}"
        return ""

    def on_prepare_checked(self, epoch: Epoch, *, ok: bool, reason: str) -> None:
        """The shell has checked; promise where nothing newer came in between."""
        check = self._check
        if check is None or check.epoch != epoch:
            return
        self._check = None
        if not ok:
            refused = reason or "the check failed"
        elif self._context.state.ballot != check.ballot:
            refused = f"term {check.ballot[1]} is over"
        else:
            refused = self._cannot_promise(check.plan, epoch, check.ballot)
        if not refused:
            self._context.persist(promised=epoch, promised_plan=check.plan)
            self._context.announce("epoch promised", epoch=str(epoch))
        self._answer_prepare(check.request_ids, epoch, refused)

    def _answer_prepare(self, request_ids: list[int], epoch: Epoch | None, refused: str) -> None:
        generation, term = self._context.state.ballot
        for request_id in request_ids:
            self._context.reply(request_id, PrepareResponse(epoch, not refused, refused, term, generation))

    def on_commit(self, request_id: int, sender: str, request: CommitRequest) -> None:
        """Make the promised epoch active; answered when the old worker is gone and the new one is started."""
        state = self._context.state
        epoch = request.epoch
        refused = self._election.accept_coordinator(sender, (request.generation, request.term))
        plan = state.promised_plan
        if not refused and epoch is not None and epoch != state.active:
            committed = self.committed.plan.epoch if self.committed and self.committed.plan else None
            is_newest = all(known is None or epoch >= known for known in (state.active, committed))
            if epoch == state.promised and plan is not None and is_newest:
                self.slot.activate(plan, request_id)
                return
            refused = f"epoch {state.promised} is promised, not {epoch}"
        generation, term = self._context.state.ballot
        self._context.reply(request_id, CommitResponse(epoch, not refused, refused, term, generation))

    def on_set_peers(self, request_id: int, sender: str, request: SetPeersRequest) -> None:
        """Hand addresses and key to the own worker, once for each key."""
        refused = self._election.accept_coordinator(sender, (request.generation, request.term))
        report = self.slot.report
        if not refused:
            if request.epoch is None or request.epoch != self._context.state.active:
                refused = f"epoch {self._context.state.active} is active, not {request.epoch}"
            elif self.slot.running != request.epoch or report is None or report.state not in _CAN_TAKE_PEERS:
                refused = f"no worker of epoch {request.epoch} runs here"
            elif self._peers_given is None or not _same_peers(self._peers_given, request):
                self.give_peers(request)
        generation, term = self._context.state.ballot
        self._context.reply(
            request_id, SetPeersResponse(request.epoch, not refused, refused, term, generation)
        )

    def give_peers(self, request: SetPeersRequest) -> None:
        """Tell the own worker of its peers."""
        self._peers_given = request
        self._context.emit(GivePeers(request))


def _same_peers(one: SetPeersRequest, other: SetPeersRequest) -> bool:
    return (one.epoch, one.peers, one.epoch_key) == (other.epoch, other.peers, other.epoch_key)
