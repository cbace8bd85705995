"""The coordinator's eye on its members: verdicts, second opinions, restarts and doubles."""

import dataclasses
from typing import TYPE_CHECKING

from .messages import Epoch, HeartbeatResponse, MemberStatus, NodeFacts, ProbeRequest, WorkerReport
from .tracker import GONE, MemberTrack, liveness, suspect_after_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .context import Context
    from .events import FailureKind
    from .flaps import FlapRecord
    from .messages import ClusterDocument
    from .replica import Replica
    from .view import Liveness


@dataclasses.dataclass(frozen=True, slots=True)
class MemberEpochs:
    """What a member told last of its promise and its worker."""

    promised: Epoch | None
    active: Epoch | None
    worker: WorkerReport | None


class MemberWatch:
    """Judges the members for the coordinator of one term.

    Args:
        context: Shared with the other parts.
        replica: This node as a member.
        document: Gives the newest version.
        flaps: Survives this coordinator.
    """

    def __init__(
        self,
        context: "Context",
        replica: "Replica",
        document: "Callable[[], ClusterDocument]",
        flaps: "FlapRecord",
    ) -> None:
        self._context = context
        self._replica = replica
        self._document = document
        self._flaps = flaps
        self._looked_at = context.now
        self._verdicts: dict[str, Liveness] = {}
        self._judged: dict[str, Liveness] = {}
        self._judged_in_step = context.step_number
        self._health_score: int | None = None
        self._next_probes = context.now
        self.tracks: dict[str, MemberTrack] = {}

    def follow(self, node_ids: "Iterable[str]") -> None:
        """Track exactly these members."""
        now = self._context.now
        self.tracks = {n: self.tracks.get(n) or MemberTrack(since=now) for n in node_ids}

    def were_there(self, seen_at: "Mapping[str, float]") -> None:
        """Take in who was there under the coordinator before, and when: their refusals count from the start."""
        for node_id, at in seen_at.items():
            if node_id in self.tracks:
                self.tracks[node_id].there_at = at

    def liveness(self, node_id: str) -> "Liveness":
        """The verdict on a member."""
        if node_id == self._context.node_id:
            return "left" if self._context.is_leaving else "alive"
        if self._judged_in_step != self._context.step_number:
            self._judged_in_step = self._context.step_number
            self._judged = {}
            self._health_score = None
        verdict = self._judged.get(node_id)
        if verdict is None:
            verdict = self._judged[node_id] = self._judge(node_id)
        return verdict

    def verdicts(self) -> "dict[str, Liveness]":
        """The verdicts on all members, in their order."""
        judged = self._judged if self._judged_in_step == self._context.step_number else {}
        return {n: judged.get(n) or self.liveness(n) for n in self._document().by_node_id}

    def _judge(self, node_id: str) -> "Liveness":
        track = self.tracks.get(node_id)
        if track is None:
            return "unknown"
        context = self._context
        silence = track.silence_seconds(context.now)
        is_watched = silence >= context.settings.dead_after_seconds or track.refused_since is not None
        if track.left_at is not None or not is_watched or self._verdicts.get(node_id) == "dead":
            health_score = 0  # decides nothing then, and is dear to find out; no death is taken back for it
        else:
            if self._health_score is None:
                self._health_score = context.health_score + int(self._is_everybody_silent())
            health_score = self._health_score
        return liveness(
            track,
            self.facts_of(node_id),
            context.facts,
            now=context.now,
            health_score=health_score,
            settings=context.settings,
        )

    def _is_everybody_silent(self) -> bool:
        """Whether most of those that were there fail together: then the fault may well be here.

        Failing is to be silent, to let a heartbeat time out (a link that loses much, but not all), or to refuse.
        """
        silent = present = 0
        now = self._context.now
        limit = suspect_after_seconds(self._context.settings)
        for node_id, track in self.tracks.items():
            was_there = track.contact_at is not None or track.refused_since is not None
            is_known = was_there and self._verdicts.get(node_id) not in GONE
            if node_id != self._context.node_id and is_known:
                present += 1
                silent += (
                    track.silence_seconds(now) > limit
                    or track.refused_since is not None
                    or (track.timed_out_at is not None and now - track.timed_out_at <= limit)
                )
        return present > 1 and 2 * silent > present

    def answering(self) -> set[str]:
        """This node and the members that answer it now, also those that are about to go."""
        limit = suspect_after_seconds(self._context.settings)
        now = self._context.now
        found = {
            n for n, t in self.tracks.items() if t.contact_at is not None and now - t.contact_at <= limit
        }
        return {self._context.node_id, *found}

    def may_answer(self, node_id: str) -> bool:
        """Whether a member is not known to be silent."""
        track = self.tracks.get(node_id)
        limit = suspect_after_seconds(self._context.settings)
        return track is not None and track.silence_seconds(self._context.now) <= limit

    def is_lost_for_long(self, node_id: str) -> bool:
        """Whether a member is gone for so long that another may vote in its place."""
        track = self.tracks.get(node_id)
        if track is None or track.gone_at is None or self.liveness(node_id) not in GONE:
            return False
        return self._context.now - track.gone_at >= self._context.settings.voter_hold_down_seconds

    def facts_of(self, node_id: str) -> NodeFacts | None:
        """What a member told last of its machine."""
        track = self.tracks.get(node_id)
        if track is not None and track.status is not None and track.status.facts is not None:
            return track.status.facts
        member = self._document().member(node_id)
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

    def is_only_damped(self, node_id: str) -> bool:
        """Whether a member is left out of new plans for coming and going, and for nothing else."""
        member = self._document().member(node_id)
        is_going = member is not None and (member.evicting or member.draining)
        return not is_going and self._flaps.is_suppressed(node_id, self._context.now)

    def not_planned_reason(self, node_id: str) -> str:
        """Why a member is left out of new plans although it may be alive; "" where it is not."""
        member = self._document().member(node_id)
        if member is not None and member.evicting:
            return "it is being evicted"
        if member is not None and member.draining:
            return "it is drained, until `daemonctl drain --undo`"
        if self._flaps.is_suppressed(node_id, self._context.now):
            points = self._flaps.points(node_id, self._context.now)
            return f"it came and went too often ({points:.1f} points); planned again when that has faded"
        return ""

    def gist(self) -> "list[tuple[str, Liveness, WorkerReport | None, bool]]":
        """What of `statuses` is told at once when it changes; in the order of the members."""
        own, tracks, found = self._context.node_id, self.tracks, []
        for node_id, verdict in self.verdicts().items():
            track = tracks.get(node_id)
            if node_id == own:
                worker = self._replica.slot.report
            else:
                worker = track.status.worker if track is not None and track.status is not None else None
            found.append((node_id, verdict, worker, track is not None and bool(track.refused)))
        return found

    def statuses(self) -> tuple[MemberStatus, ...]:
        """Every member, as it is seen here."""
        statuses = []
        for member in self._document().members:
            track = self.tracks.get(member.node_id)
            heartbeat_ms = track.heartbeat_ms if track and track.heartbeat_ms is not None else -1.0
            epochs = self.epochs_of(member.node_id)
            statuses.append(
                MemberStatus(
                    member.node_id,
                    self.liveness(member.node_id),
                    heartbeat_ms,
                    epochs.worker if epochs else None,
                    duplicate_identity=bool(track and track.refused),
                    not_planned_reason=self.not_planned_reason(member.node_id),
                )
            )
        return tuple(statuses)

    def meet(self, node_id: str, boot_nonce: int) -> None:
        """A daemon said hello under a member's identity."""
        track = self.tracks.get(node_id)
        if track is not None:
            track.meet(boot_nonce, self._context.now, suspect_after_seconds(self._context.settings))

    def is_member(self, node_id: str, boot_nonce: int) -> bool:
        """Whether the daemon with this nonce may be the member, and not a double of it."""
        track = self.tracks.get(node_id)
        if track is None or track.session is None:
            return True
        patience = suspect_after_seconds(self._context.settings)
        return boot_nonce == track.session or (
            boot_nonce not in track.refused and track.silence_seconds(self._context.now) >= patience
        )

    def on_heartbeat_response(self, peer: str, response: HeartbeatResponse, round_trip_ms: float) -> bool:
        """Take in how a member is; True where that is news."""
        track = self.tracks[peer]
        now = self._context.now
        session = track.identify(response, now, self._context.settings)
        if session == "duplicate":
            self._context.announce("duplicate identity", node_id=peer, refused=len(track.refused))
        if response.boot_nonce != track.session:
            track.forget_round(response.round)
            return session == "duplicate"
        before = track.status
        # Nobody else is gone, and to ask for the verdict at every answer is dear.
        may_be_gone = (
            track.left_at is not None
            or track.refused_since is not None
            or track.silence_seconds(now) >= self._context.settings.dead_after_seconds
        )
        was_gone = may_be_gone and self.liveness(peer) in GONE
        is_back = not response.leaving and (was_gone or session == "restarted")
        if not track.on_answer(response, round_trip_ms, now):
            return False
        self._judged.pop(peer, None)
        if is_back and self.liveness(peer) not in GONE:
            self._flaps.returned(peer, now)
            if self._flaps.is_suppressed(peer, now):
                self._context.announce("member flaps", node_id=peer, points=self._flaps.points(peer, now))
        if session == "restarted":
            self._context.announce("member restarted", node_id=peer)
        is_same = before is not None and response.tells_the_same(before)
        return not is_same or self._verdicts.get(peer) != "alive"

    def on_heartbeat_failed(self, peer: str, number: int, kind: "FailureKind") -> bool:
        """Take in that a heartbeat to a member came to nothing; True where that makes it suspect at once.

        A refused connection is proof of a kind that silence is not: the machine is up, and the daemon is not. It
        says nothing of the worker, and nothing but this verdict rests on it.
        """
        track, now = self.tracks[peer], self._context.now
        sent_at = track.forget_round(number)
        if sent_at is None:
            return False
        if kind == "deadline":
            track.timed_out_at = now
        if kind != "refused":
            return False
        is_first = track.on_refused(sent_at, now)
        self._judged.pop(peer, None)
        return is_first or self.liveness(peer) != self._verdicts.get(peer)

    def on_leave(self, peer: str, reason: str) -> None:
        """A member says goodbye."""
        track = self.tracks.get(peer)
        if track is None:
            return
        is_news, track.left_at = track.left_at is None, self._context.now
        if is_news:
            self._judged.pop(peer, None)
            self._context.announce("member leaves", node_id=peer, reason=reason)

    def has_left(self, peer: str) -> bool:
        """Whether a member said goodbye and has not answered since that it stays."""
        track = self.tracks.get(peer)
        return track is not None and track.left_at is not None

    def on_probed(self, target: str) -> None:
        """Another member has reached ``target``."""
        track = self.tracks.get(target)
        if track is not None:
            track.reached_at = self._context.now
            self._judged.pop(target, None)

    def excuse_silence(self) -> None:
        """Do not count time against the members in which this node was too starved to ask them."""
        heartbeat = self._context.settings.heartbeat_seconds
        starved = self._context.now - self._looked_at - 2 * heartbeat
        self._looked_at = self._context.now
        if starved > 0:
            for track in self.tracks.values():
                track.excuse(starved)
            self._judged = {}

    def look(self) -> None:
        """Announce verdicts that changed, and ask others about members that are silent."""
        now = self._context.now
        silent = []
        verdicts, tracks = self._verdicts, self.tracks
        for node_id in self._document().by_node_id:
            verdict = self.liveness(node_id)
            before = verdicts.get(node_id, "unknown")
            if verdict != before:
                verdicts[node_id] = verdict
                self._context.announce(f"member {verdict}", node_id=node_id, before=before)
            track = tracks.get(node_id)
            if track is not None:
                track.gone_at = (track.gone_at or now) if verdict in GONE else None
            if verdict == "suspect" or verdict == "cut":  # noqa: PLR1714  the path of every beat
                silent.append(node_id)
        is_due = bool(silent) and now >= self._next_probes
        if is_due:
            self._next_probes = now + self._context.settings.probe_seconds
        for node_id in silent:
            track = tracks[node_id]
            if is_due:
                track.asked = frozenset()
            # Who refuses is judged before the next round. A new coordinator asks whoever turns out to be there.
            if is_due or track.refused_since is not None:
                self._probe(node_id, track)

    def _probe(self, target: str, track: MemberTrack) -> None:
        """Ask a few others whether they reach a silent member."""
        context = self._context
        left = context.settings.probe_helpers - len(track.asked)
        if left <= 0:
            return
        helpers = [
            n
            for n in self.tracks
            if n != context.node_id and n not in track.asked and self.liveness(n) == "alive"
        ]
        helpers = context.rng.sample(helpers, min(len(helpers), left))
        track.asked |= frozenset(helpers)
        generation, term = context.state.ballot
        for helper in helpers:
            deadline = 2 * context.settings.rpc_deadline_seconds
            context.send(helper, ProbeRequest(generation, term, target), deadline)
