"""What the coordinator of one term does: heartbeats, the document, members and changes.

An instance lives from election to step-down and takes everything that it knows with it. What must outlive it
is in the document.
"""

import dataclasses
from typing import TYPE_CHECKING

from .changes import OpenChange
from .drains import Drains
from .effects import ChangeRejected
from .errors import LocalClusterMisuse
from .evictions import Evictions
from .heartbeats import Heartbeats
from .leavers import Leavers
from .member_news import MemberNews
from .messages import (
    ClusterDocument,
    CommitResponse,
    Epoch,
    HeartbeatRequest,
    HeartbeatResponse,
    NodeFacts,
    PrepareResponse,
    ProbeResponse,
    Request,
    Response,
    SetPeersResponse,
    TransferLeadershipRequest,
    TransferLeadershipResponse,
    WantedModel,
    WorkerReport,
)
from .planning import PlanMaker
from .quorum import outweighs, weights
from .rollout import Rollout
from .transfer import Transfer
from .watch import MemberEpochs, MemberWatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .context import Context
    from .events import CandidateVerified, FailureKind
    from .flaps import FlapRecord
    from .messages import Deployment
    from .replica import Replica
    from .view import Liveness, ServingState


_HURRY_SECONDS = 0.05
_GATHER_ABOVE_MEMBERS = 64
_GATHER_SECONDS = 0.02


class Coordinator:
    """The coordinator of one term.

    Invariants: every version that it writes is of its own term; a version is written only when the one before
    is committed, so at most one is open; voters' weights move by at most one unit per version.

    Args:
        context: Shared with the other parts.
        replica: This node as a member.
        candidates: The last Hello of each node, and when it was.
        asked_at: When the votes were asked for that elected this node.
        voters: Those who gave them.
        flaps: What this node knows of nodes that come and go, in whatever term it saw it.
    """

    def __init__(
        self,
        context: "Context",
        replica: "Replica",
        candidates: "Mapping[str, tuple[CandidateVerified, float]]",
        asked_at: float,
        voters: frozenset[str],
        flaps: "FlapRecord",
    ) -> None:
        self._context = context
        self._replica = replica
        self._next_beat = context.now
        self._is_touched = True
        self._gather_until = context.now
        self._lease_floor: float | None = None
        self._plan_seq = 0
        self.flaps = flaps
        self.watch = MemberWatch(context, replica, lambda: self.document, flaps)
        self._news = MemberNews(context, self.watch, candidates, flaps)
        self._leavers = Leavers(context, self.watch)
        self.changes = OpenChange(context)
        self.evictions = Evictions(context)
        self.drains = Drains(context, self)
        self._is_handing_over = False
        self._going_since: float | None = None
        self.transfer = Transfer(context, self)
        self._heartbeats = Heartbeats(context, self)
        self.rollout = Rollout(context, self)
        self.planning = PlanMaker(context, self, self.rollout)
        self._follow_members()
        for node_id in voters & self.watch.tracks.keys():
            self.watch.tracks[node_id].lease_at = asked_at
        # A version of the own term must be committed before anything else may be: what a quorum stored in an
        # earlier term is not safe by that alone (Ongaro 2014, section 3.6.2).
        self._write(self.document)

    @property
    def document(self) -> ClusterDocument:
        """The newest version, committed or not."""
        document = self._context.state.document
        return document if document is not None else ClusterDocument()

    @property
    def is_settled(self) -> bool:
        """Whether the newest version is committed, in the own term."""
        state = self._context.state
        return state.commit_version == state.document_version

    @property
    def serving_state(self) -> "ServingState":
        """What the cluster is doing for its users."""
        return self.planning.serving_state

    def next_deadline(self) -> float:
        """When the next heartbeat is due, or news has been gathered; everything else is looked at then, too."""
        if self._is_touched and self._is_gathering:
            return min(self._gather_until, self._next_beat)
        return self._next_beat

    def next_epoch(self) -> Epoch:
        """A fresh epoch; no other coordinator ever makes one of this term."""
        self._plan_seq += 1
        return Epoch(*self._context.state.ballot, self._plan_seq)

    def has_lease(self) -> bool:
        """Whether a quorum has followed within the lease, counted from when their heartbeats were sent."""
        oldest = self._context.now - self._context.settings.lease_seconds
        if self._lease_floor is not None and self._lease_floor >= oldest:
            return True  # those that followed then do so still
        following = {self._context.node_id}
        floor = self._context.now
        for node_id in self._votes:
            lease_at = self.watch.tracks[node_id].lease_at
            if lease_at is not None and lease_at >= oldest:
                following.add(node_id)
                floor = min(floor, lease_at)
        holds = outweighs(self._votes, following)
        self._lease_floor = floor if holds else None
        return holds

    def liveness(self, node_id: str) -> "Liveness":
        """The verdict on a member."""
        return self.watch.liveness(node_id)

    def facts_of(self, node_id: str) -> NodeFacts | None:
        """What a member told last of its machine."""
        return self.watch.facts_of(node_id)

    def epochs_of(self, node_id: str) -> MemberEpochs | None:
        """What a member told last of its promise and its worker; None where it has not told."""
        return self.watch.epochs_of(node_id)

    def worker_of(self, node_id: str) -> WorkerReport | None:
        """A member's worker, as last told."""
        epochs = self.epochs_of(node_id)
        return epochs.worker if epochs else None

    def load(self, change_id: int, wanted: WantedModel | None) -> None:
        """Take a change of what is wanted; None is to serve nothing."""
        self.changes.begin(change_id, wanted)
        if wanted is not None:
            self.planning.forgive()

    def evict(self, change_id: int, node_id: str) -> None:
        """Take the wish that a node be gone for good."""
        own = self.document.member(self._context.node_id)
        going = self.evictions.wanted | {node_id}
        if (
            own is not None
            and (own.evicting or own.node_id in going)
            and not self.transfer.is_possible_without(going)
        ):
            message = "the coordinator is to go and no other voter could take over; start one first"
            self._context.emit(ChangeRejected(change_id, "LAST_VOTER", message))
            return
        self.evictions.begin(change_id, node_id)

    def hand_over(self) -> None:
        """Let another voter coordinate, where there is one."""
        self._is_handing_over = self.transfer.is_possible

    @property
    def is_going(self) -> bool:
        """Whether another is about to coordinate: what can wait is left to it, for a while."""
        if not self._reason_to_go() or not self.transfer.is_possible:
            self._going_since = None
            return False
        if self._going_since is None:
            self._going_since = self._context.now
        return self._context.now - self._going_since < self._context.settings.leave_timeout_seconds

    def abandon(self) -> None:
        """This node is no longer coordinator: tell those who wait for a change."""
        self.changes.abandon()
        self.evictions.abandon()
        self.drains.abandon()
        self._leavers.abandon()

    def on_heartbeat_response(self, peer: str, response: HeartbeatResponse, round_trip_ms: float) -> None:
        """Take in how a member is."""
        if not response.accepted:
            return
        if (response.generation, response.term) != self._context.state.ballot:
            return  # an answer to a heartbeat of an earlier term, whose rounds were counted anew since
        if self._heartbeats.is_farewell(peer, response):
            return
        if peer in self.watch.tracks and self.watch.on_heartbeat_response(peer, response, round_trip_ms):
            self.touch()

    def on_computed(self, request_id: int, deployment: "Deployment | None") -> None:
        """The planner has a plan, for whoever asked."""
        if deployment is not None and deployment.stages:
            self.drains.on_computed(request_id)
        else:
            self.drains.on_refused(request_id, "NO_PLAN", "")
        self.planning.on_computed(request_id, deployment)

    def on_refused(self, request_id: int, reason: str, refusal_json: str) -> None:
        """The planner has refused, to whoever asked."""
        self.drains.on_refused(request_id, reason, refusal_json)
        self.planning.on_refused(request_id, reason, refusal_json)

    def on_leave(self, request_id: int, peer: str, reason: str) -> None:
        """A member says goodbye. It is answered when it may go: when the others are a quorum without it."""
        self.touch()
        self._leavers.on_leave(request_id, peer, reason)

    def on_any_response(self, peer: str, message: Response, round_trip_ms: float) -> None:
        """Take in an answer.

        Raises:
            LocalClusterMisuse: It is none.
        """
        match message:
            case HeartbeatResponse():
                self.on_heartbeat_response(peer, message, round_trip_ms)
            case PrepareResponse() | CommitResponse() | SetPeersResponse():
                self._on_plan_response(peer, message)
            case ProbeResponse():
                if message.reached:
                    self.watch.on_probed(message.target_node_id)
            case TransferLeadershipResponse():
                self.transfer.on_response(message)
            case _:
                raise LocalClusterMisuse(f"{message!r} is not a response between nodes")

    def _on_plan_response(
        self, peer: str, response: PrepareResponse | CommitResponse | SetPeersResponse
    ) -> None:
        self.touch()
        if isinstance(response, PrepareResponse):
            self.planning.on_prepare_response(peer, response)
        self.rollout.on_answer(peer, response)

    def on_connection_lost(self, peer: str) -> None:
        """A connection has ended: ask the member at once whether it is there, though not again and again."""
        now = self._context.now
        track = self.watch.tracks.get(peer)
        if track is None or track.contact_at is None or not self.watch.may_answer(peer):
            return
        if track.hurried_at is None or now - track.hurried_at >= _HURRY_SECONDS:
            track.hurried_at = now
            self._heartbeats.send_to(peer, track)

    def on_request_failed(self, peer: str, request: Request, kind: "FailureKind") -> None:
        """Take in that a call came to nothing."""
        if isinstance(request, TransferLeadershipRequest):
            self.transfer.on_response(TransferLeadershipResponse())
        if isinstance(request, HeartbeatRequest):
            if peer in self.watch.tracks and request.term == self._context.state.term:
                if self.watch.on_heartbeat_failed(peer, request.round, kind):
                    self.touch()
                if kind == "lost":
                    self.on_connection_lost(peer)
            return
        self.touch()
        self.planning.on_request_failed(peer, request)
        self.rollout.on_request_failed(peer, request)

    def touch(self) -> None:
        """Let the next `advance` look at everything: something other than the time has changed."""
        self._is_touched = True

    def advance(self) -> None:
        """Do whatever the present state calls for. Called after every event; twice does no harm.

        Most events are answers to heartbeats without news; those cost nothing here until the next beat. In a
        large cluster a look is dear and news comes in crowds: it is gathered for a moment.
        """
        now = self._context.now
        if now < self._next_beat and (
            not self._is_touched or (self._is_gathering and now < self._gather_until)
        ):
            return
        self._is_touched = False
        self._gather_until = now + _GATHER_SECONDS
        self.watch.excuse_silence()
        self.watch.look()
        progress = True
        while progress:
            progress = self._commit()
            if self.is_settled and not self._context.is_leaving:
                self.drains.advance()
                self.planning.advance()
                self.rollout.advance()
                progress = self._write_next() or progress
        if self.is_settled:
            self.transfer.advance(self._reason_to_go())
        self._leavers.let_go(self._votes, is_settled=self.is_settled)
        if self._context.now >= self._next_beat:
            self._next_beat = self._context.now + self._context.settings.heartbeat_seconds
            self._heartbeats.send()

    @property
    def _is_gathering(self) -> bool:
        return len(self.watch.tracks) > _GATHER_ABOVE_MEMBERS

    def _reason_to_go(self) -> str:
        """Why another should coordinate; "" where this node may."""
        own = self.document.member(self._context.node_id)
        if self._context.is_leaving:
            return "it goes down"
        if own is not None and (own.evicting or own.draining):
            return "it is being evicted" if own.evicting else "it is being drained"
        return "an operator asked for it" if self._is_handing_over else ""

    def _commit(self) -> bool:
        """Commit the open version where a quorum has stored it."""
        document = self.document
        if self.is_settled:
            return False
        holders = {
            node_id for node_id in self._votes if self.watch.tracks[node_id].stored == document.version
        }
        if not outweighs(self._votes, holders | {self._context.node_id}):
            return False
        before = self._replica.committed
        self._replica.learn_commit(document.version)
        plan = document.plan
        if plan is not None and plan.epoch is not None and (before is None or before.plan != plan):
            self._context.announce(
                "plan committed", epoch=str(plan.epoch), nodes=list(plan.node_ids), term=document.term
            )
        self.changes.on_commit(document)
        self.evictions.on_commit(document)
        self.drains.on_commit(document)
        self._next_beat = self._context.now
        return True

    def _write_next(self) -> bool:
        """Write the next version where anything calls for one."""
        if self.transfer.is_under_way:
            return False  # the heir must hold the newest version
        document = self._news.with_members(self.changes.apply(self.document, self.next_epoch))
        document = self.drains.apply(document, self.next_epoch)
        plan = self.planning.plan_to_store
        if (
            plan is not None
            and document.wanted == plan.wanted
            and not any(m.draining and m.node_id in plan.node_ids for m in document.members)
        ):
            document = dataclasses.replace(document, plan=plan)
        document = self.evictions.apply(document, self.next_epoch)
        document = self._news.with_weights(document)
        if document is self.document or document == self.document:
            if self.changes.is_pending:
                self.changes.on_commit(document)
            self.evictions.on_commit(document)
            self.drains.on_commit(document)
            return False
        self._write(document)
        return True

    def _write(self, document: ClusterDocument) -> None:
        generation, term = self._context.state.ballot
        seq = document.seq + 1 if document.version[:2] == (generation, term) else 1
        for node_id in document.denied_node_ids:
            if node_id in self.document.by_node_id:
                self._heartbeats.bid_farewell(node_id)
        self._replica.store(dataclasses.replace(document, generation=generation, term=term, seq=seq))
        self._follow_members()
        self._next_beat = self._context.now

    def _follow_members(self) -> None:
        """Track exactly the members of the newest version, and count its votes."""
        self._votes = weights(self.document)
        self._lease_floor = None
        self.watch.follow(member.node_id for member in self.document.members)
