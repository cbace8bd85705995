"""What the coordinator of one term does: heartbeats, the document, members and changes.

An instance lives from election to step-down and takes everything that it knows with it. What must outlive it
is in the document.
"""

import dataclasses
from typing import TYPE_CHECKING

from .admission import JoinBatch, member_of, with_news
from .changes import OpenChange
from .messages import (
    NO_VERSION,
    ClusterDocument,
    CommitResponse,
    Epoch,
    HeartbeatRequest,
    HeartbeatResponse,
    Member,
    MemberStatus,
    NodeFacts,
    Plan,
    PrepareResponse,
    Request,
    SetPeersResponse,
    WantedModel,
    WorkerReport,
)
from .planning import PlanMaker
from .quorum import next_weight_change, outweighs, weights
from .rollout import Rollout
from .tracker import MemberTrack, liveness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .context import Context
    from .events import CandidateVerified
    from .replica import Replica
    from .view import Liveness, ServingState

_RECENT_HELLO_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class MemberEpochs:
    """What a member told last of its promise and its worker."""

    promised: Epoch | None
    active: Epoch | None
    worker: WorkerReport | None


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
    """

    def __init__(
        self,
        context: "Context",
        replica: "Replica",
        candidates: "Mapping[str, tuple[CandidateVerified, float]]",
        asked_at: float,
        voters: frozenset[str],
    ) -> None:
        self._context = context
        self._replica = replica
        self._candidates = candidates
        self._since = context.now
        self._looked_at = context.now
        self._next_beat = context.now
        self._next_status = context.now
        self._told_status: object = None
        self._joins = JoinBatch(context.settings)
        self._verdicts: dict[str, Liveness] = {}
        self._judged: dict[str, Liveness] = {}
        self._judged_in_step = context.step_number
        self._is_touched = True
        self._plan_seq = 0
        self.tracks: dict[str, MemberTrack] = {}
        self.changes = OpenChange(context)
        self.rollout = Rollout(context, self)
        self.planning = PlanMaker(context, self, self.rollout)
        self._follow_members()
        for node_id in voters & self.tracks.keys():
            self.tracks[node_id].lease_at = asked_at
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
        return self._context.state.commit_version == self.document.version

    @property
    def serving_state(self) -> "ServingState":
        """What the cluster is doing for its users."""
        return self.planning.serving_state

    def next_deadline(self) -> float:
        """When the next heartbeat is due; everything else is looked at then, too."""
        return self._next_beat

    def next_epoch(self) -> Epoch:
        """A fresh epoch; no other coordinator ever makes one of this term."""
        self._plan_seq += 1
        return Epoch(*self._context.state.ballot, self._plan_seq)

    def has_lease(self) -> bool:
        """Whether a quorum has followed within the lease, counted from when their heartbeats were sent."""
        oldest = self._context.now - self._context.settings.lease_seconds
        following = {self._context.node_id}
        for node_id in self._votes:
            lease_at = self.tracks[node_id].lease_at
            if lease_at is not None and lease_at >= oldest:
                following.add(node_id)
        return outweighs(self._votes, following)

    def liveness(self, node_id: str) -> "Liveness":
        """The verdict on a member."""
        if node_id == self._context.node_id:
            return "alive"
        if self._judged_in_step != self._context.step_number:
            self._judged_in_step = self._context.step_number
            self._judged = {}
        verdict = self._judged.get(node_id)
        if verdict is None:
            verdict = self._judged[node_id] = self._judge(node_id)
        return verdict

    def _judge(self, node_id: str) -> "Liveness":
        track = self.tracks.get(node_id)
        if track is None:
            return "unknown"
        return liveness(
            track,
            self.facts_of(node_id),
            self._context.facts,
            now=self._context.now,
            health_score=self._context.health_score,
            settings=self._context.settings,
        )

    def facts_of(self, node_id: str) -> NodeFacts | None:
        """What a member told last of its machine."""
        track = self.tracks.get(node_id)
        if track is not None and track.status is not None and track.status.facts is not None:
            return track.status.facts
        member = self.document.member(node_id)
        return member.facts if member else None

    def epochs_of(self, node_id: str) -> MemberEpochs | None:
        """What a member told last of its promise and its worker; None where it has not told."""
        if node_id == self._context.node_id:
            state = self._context.state
            return MemberEpochs(state.promised, state.active, self._replica.slot.report)
        track = self.tracks.get(node_id)
        if track is None or track.status is None:
            return None
        return MemberEpochs(track.status.promised, track.status.active, track.status.worker)

    def worker_of(self, node_id: str) -> WorkerReport | None:
        """A member's worker, as last told."""
        epochs = self.epochs_of(node_id)
        return epochs.worker if epochs else None

    def statuses(self) -> tuple[MemberStatus, ...]:
        """Every member, as it is seen here."""
        statuses = []
        for member in self.document.members:
            track = self.tracks.get(member.node_id)
            heartbeat_ms = track.heartbeat_ms if track and track.heartbeat_ms is not None else -1.0
            statuses.append(
                MemberStatus(
                    member.node_id,
                    self.liveness(member.node_id),
                    heartbeat_ms,
                    self.worker_of(member.node_id),
                )
            )
        return tuple(statuses)

    def load(self, change_id: int, wanted: WantedModel | None) -> None:
        """Take a change of what is wanted; None is to serve nothing."""
        self.changes.begin(change_id, wanted)
        if wanted is not None:
            self.planning.forgive()

    def on_heartbeat_response(self, peer: str, response: HeartbeatResponse, round_trip_ms: float) -> None:
        """Take in how a member is."""
        track = self.tracks.get(peer)
        if track is None or not response.accepted:
            return
        if (response.generation, response.term) != self._context.state.ballot:
            return  # an answer to a heartbeat of an earlier term, whose rounds were counted anew since
        before = track.status
        if track.on_answer(response, round_trip_ms, self._context.now):
            self._judged.pop(peer, None)
            is_news = before is None or dataclasses.replace(before, round=response.round) != response
            if is_news or self._verdicts.get(peer) != "alive":
                self.touch()
            if before is not None and before.boot_nonce != response.boot_nonce:
                self._context.announce("member restarted", node_id=peer)

    def on_response(self, peer: str, response: PrepareResponse | CommitResponse | SetPeersResponse) -> None:
        """Take in an answer about a plan."""
        self.touch()
        if isinstance(response, PrepareResponse):
            self.planning.on_prepare_response(peer, response)
        self.rollout.on_answer(peer, response)

    def on_request_failed(self, peer: str, request: Request) -> None:
        """Take in that a call came to nothing."""
        track = self.tracks.get(peer)
        if isinstance(request, HeartbeatRequest):
            if track is not None and request.term == self._context.state.term:
                track.forget_round(request.round)
            return
        self.touch()
        self.planning.on_request_failed(peer, request)
        self.rollout.on_request_failed(peer, request)

    def touch(self) -> None:
        """Let the next `advance` look at everything: something other than the time has changed."""
        self._is_touched = True

    def advance(self) -> None:
        """Do whatever the present state calls for. Called after every event; twice does no harm.

        Most events are answers to heartbeats without news; those cost nothing here until the next beat.
        """
        if not self._is_touched and self._context.now < self._next_beat:
            return
        self._is_touched = False
        self._excuse_silence()
        self._watch_members()
        progress = True
        while progress:
            progress = self._commit()
            if self.is_settled:
                self.planning.advance()
                self.rollout.advance()
                progress = self._write_next() or progress
        if self._context.now >= self._next_beat:
            self._next_beat = self._context.now + self._context.settings.heartbeat_seconds
            self._beat()

    def _excuse_silence(self) -> None:
        """Do not count time against the members in which this node was too starved to ask them."""
        heartbeat = self._context.settings.heartbeat_seconds
        starved = self._context.now - self._looked_at - 2 * heartbeat
        self._looked_at = self._context.now
        if starved > 0:
            for track in self.tracks.values():
                track.excuse(starved)
            self._judged = {}

    def _watch_members(self) -> None:
        """Announce verdicts that changed."""
        for member in self.document.members:
            verdict = self.liveness(member.node_id)
            before = self._verdicts.get(member.node_id, "unknown")
            if verdict != before:
                self._verdicts[member.node_id] = verdict
                self._context.announce(f"member {verdict}", node_id=member.node_id, before=before)

    def _commit(self) -> bool:
        """Commit the open version where a quorum has stored it."""
        document = self.document
        if self.is_settled:
            return False
        holders = {node_id for node_id in self._votes if self.tracks[node_id].stored == document.version}
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
        self._next_beat = self._context.now
        return True

    def _write_next(self) -> bool:
        """Write the next version where anything calls for one."""
        document = self._with_members(self._with_change(self.document))
        plan = self.planning.plan_to_store
        if plan is not None and document.wanted == plan.wanted:
            document = dataclasses.replace(document, plan=plan)
        document = self._with_weights(document)
        if document == self.document:
            if self.changes.is_pending:
                self.changes.on_commit(document)
            return False
        self._write(document)
        return True

    def _write(self, document: ClusterDocument) -> None:
        generation, term = self._context.state.ballot
        seq = document.seq + 1 if document.version[:2] == (generation, term) else 1
        self._replica.store(dataclasses.replace(document, generation=generation, term=term, seq=seq))
        self._follow_members()
        self._next_beat = self._context.now

    def _with_change(self, document: ClusterDocument) -> ClusterDocument:
        if not self.changes.is_pending:
            return document
        wanted = self.changes.wanted
        document = dataclasses.replace(document, wanted=wanted)
        plan = document.plan
        if wanted is None and (plan is None or plan.deployments or plan.wanted is not None):
            document = dataclasses.replace(document, plan=Plan(self.next_epoch()))
        return document

    def _with_members(self, document: ClusterDocument) -> ClusterDocument:
        now = self._context.now
        known = {member.node_id for member in document.members}
        unknown = [node_id for node_id in self._candidates if node_id not in known]
        plan_runs = document.plan is not None and bool(document.plan.deployments)
        if self._joins.ready(unknown, now, plan_runs=plan_runs):
            joiners = tuple(member_of(self._candidates[node_id][0]) for node_id in unknown)
            document = dataclasses.replace(document, members=(*document.members, *joiners))
            for member in joiners:
                self._context.announce("member admitted", node_id=member.node_id, discovery=member.discovery)
        addresses = {
            node_id: candidate.addresses
            for node_id, (candidate, at) in self._candidates.items()
            if at >= self._since - _RECENT_HELLO_SECONDS
        }
        addresses[self._context.node_id] = self._context.addresses
        facts = {
            node_id: track.status.facts
            for node_id, track in self.tracks.items()
            if track.status is not None and track.status.facts is not None
        }
        return with_news(document, addresses, facts)

    def _with_weights(self, document: ClusterDocument) -> ClusterDocument:
        verdicts = {member.node_id: self.liveness(member.node_id) for member in document.members}
        own = self._context.facts.versions
        changed = next_weight_change(
            document,
            coordinator=self._context.node_id,
            alive={node_id for node_id, verdict in verdicts.items() if verdict in {"alive", "incompatible"}},
            dead={node_id for node_id, verdict in verdicts.items() if verdict == "dead"},
            electable={m.node_id for m in document.members if m.facts is None or m.facts.versions == own},
            max_voters=self._context.settings.max_voters,
        )
        if changed is not document:
            self._context.announce(
                "voters changed",
                voters=[member.node_id for member in changed.members if member.voter],
                tie_breaker_votes=changed.policy.tie_breaker_votes if changed.policy else 0,
            )
        return changed

    def _follow_members(self) -> None:
        """Track exactly the members of the newest version, and count its votes."""
        now = self._context.now
        self._votes = weights(self.document)
        self.tracks = {
            member.node_id: self.tracks.get(member.node_id) or MemberTrack(since=now)
            for member in self.document.members
        }

    def _beat(self) -> None:
        """Send a heartbeat to every member, this node included, with the document where it is behind."""
        context = self._context
        document = self.document
        commit = (
            context.state.commit_version
            if context.state.commit_version[:2] == document.version[:2]
            else NO_VERSION
        )
        statuses = self.statuses()
        content = (
            self.serving_state,
            self.planning.refusal_json,
            tuple((status.node_id, status.liveness, status.worker) for status in statuses),
        )
        tell = content != self._told_status or context.now >= self._next_status
        if tell:
            self._told_status = content
            self._next_status = context.now + context.settings.status_seconds
        for member in document.members:
            track = self.tracks[member.node_id]
            context.send(
                member.node_id,
                HeartbeatRequest(
                    generation=document.generation,
                    term=document.term,
                    round=track.next_round(context.now),
                    document=None if track.stored == document.version or self._is_self(member) else document,
                    commit_generation=commit[0],
                    commit_term=commit[1],
                    commit_seq=commit[2],
                    members=statuses if tell else (),
                    serving_state=self.serving_state if tell else "",
                    refusal_json=self.planning.refusal_json if tell else "",
                ),
                context.settings.rpc_deadline_seconds,
            )

    def _is_self(self, member: Member) -> bool:
        return member.node_id == self._context.node_id
