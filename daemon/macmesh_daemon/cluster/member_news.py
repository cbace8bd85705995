"""What the members' coming, going and telling changes in the document, version by version."""

import dataclasses
from typing import TYPE_CHECKING

from .admission import JoinBatch, member_of, with_news
from .messages import ClusterDocument
from .quorum import next_weight_change
from .tracker import GONE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .context import Context
    from .events import CandidateVerified
    from .flaps import FlapRecord
    from .watch import MemberWatch

_RECENT_HELLO_SECONDS = 30.0


class MemberNews:
    """Takes the members' news into a document, for the coordinator of one term.

    Args:
        context: Shared with the other parts.
        watch: Judges the members.
        candidates: The last Hello of each node, and when it was.
        flaps: Who comes and goes.
    """

    def __init__(
        self,
        context: "Context",
        watch: "MemberWatch",
        candidates: "Mapping[str, tuple[CandidateVerified, float]]",
        flaps: "FlapRecord",
    ) -> None:
        self._context = context
        self._watch = watch
        self._candidates = candidates
        self._flaps = flaps
        self._since = context.now
        self._joins = JoinBatch(context.settings)
        #: A document whose weights need no change while all its members are alive.
        self._balanced: ClusterDocument | None = None

    def with_members(self, document: ClusterDocument) -> ClusterDocument:
        """With those who join, and with the addresses and machines that the members told last."""
        now = self._context.now
        members, denied = document.by_node_id, document.denied_node_ids
        unknown = [n for n in self._candidates if n not in members and n not in denied]
        plan_runs = document.plan is not None and bool(document.plan.deployments)
        if self._joins.ready(unknown, now, plan_runs=plan_runs):
            joiners = tuple(member_of(self._candidates[node_id][0]) for node_id in unknown)
            document = dataclasses.replace(document, members=(*document.members, *joiners))
            for member in joiners:
                self._context.announce("member admitted", node_id=member.node_id, discovery=member.discovery)
        elif self._has_no_news(document):
            return document
        addresses = {
            node_id: candidate.addresses
            for node_id, (candidate, at) in self._candidates.items()
            if at >= self._since - _RECENT_HELLO_SECONDS
            and self._watch.is_member(node_id, candidate.boot_nonce)
        }
        addresses[self._context.node_id] = self._context.addresses
        facts = {
            node_id: track.status.facts
            for node_id, track in self._watch.tracks.items()
            if track.status is not None and track.status.facts is not None
        }
        return with_news(document, addresses, facts)

    def _has_no_news(self, document: ClusterDocument) -> bool:
        """Whether all records surely are as their nodes told; the usual case, without building anything."""
        for node_id, member in document.by_node_id.items():
            track, found = self._watch.tracks.get(node_id), self._candidates.get(node_id)
            if track is not None and track.status is not None and track.status.facts is not None:
                told = track.status.facts
                if told is not member.facts and told != member.facts:
                    return False
            if found is not None and found[0].addresses != member.addresses:
                return False
        own = document.by_node_id.get(self._context.node_id)
        return own is None or own.addresses == self._context.addresses

    def with_weights(self, document: ClusterDocument) -> ClusterDocument:
        """With the next change of the votes that the members' coming and going calls for; the same where none is."""
        known = self._watch.verdicts()
        verdicts = {n: known.get(n) or self._watch.liveness(n) for n in document.by_node_id}
        all_there = not self._flaps.has_suppressed and set(verdicts.values()) <= {"alive"}
        if all_there and document is self._balanced:
            return document
        own = self._context.facts.versions
        changed = next_weight_change(
            document,
            coordinator=self._context.node_id,
            alive={node_id for node_id, verdict in verdicts.items() if verdict in {"alive", "incompatible"}},
            dead={node_id for node_id, verdict in verdicts.items() if verdict in GONE},
            answering=self._watch.answering(),
            gone={node_id for node_id in verdicts if self._watch.is_lost_for_long(node_id)},
            electable={
                m.node_id
                for m in document.members
                if (m.facts is None or m.facts.versions == own)
                and not self._flaps.is_suppressed(m.node_id, self._context.now)
            },
            max_voters=self._context.settings.max_voters,
        )
        if changed is not document:
            self._context.announce(
                "voters changed",
                voters=[member.node_id for member in changed.members if member.voter],
                tie_breaker_votes=changed.policy.tie_breaker_votes if changed.policy else 0,
            )
        elif all_there:
            self._balanced = document
        return changed
