"""Candidates become members: when, and with which record."""

import dataclasses
from typing import TYPE_CHECKING

from .messages import ClusterDocument, Member, NodeFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .events import CandidateVerified
    from .settings import ClusterSettings


class JoinBatch:
    """Waits for more joiners while a plan runs, so that one plan change serves them all."""

    def __init__(self, settings: "ClusterSettings") -> None:
        self._settings = settings
        self._waiting_since: dict[str, float] = {}

    def ready(self, node_ids: "Iterable[str]", now: float, *, plan_runs: bool) -> bool:
        """Whether those that wait are admitted now."""
        waiting = set(node_ids)
        if not waiting and not self._waiting_since:
            return False
        self._waiting_since = {n: self._waiting_since.get(n, now) for n in waiting}
        if not waiting:
            return False
        if not plan_runs:
            return True
        first, last = min(self._waiting_since.values()), max(self._waiting_since.values())
        return (
            now - last >= self._settings.join_quiet_seconds or now - first >= self._settings.join_max_seconds
        )


def member_of(candidate: "CandidateVerified") -> Member:
    """The record of a candidate that is admitted; votes come later."""
    return Member(candidate.node_id, candidate.addresses, candidate.facts, discovery=candidate.discovery)


def with_news(
    document: ClusterDocument,
    addresses: "Mapping[str, tuple[str, ...]]",
    facts: "Mapping[str, NodeFacts]",
) -> ClusterDocument:
    """Bring the members' records up to date; gives ``document`` itself where they are.

    Args:
        document: The document.
        addresses: Where nodes answer now, where that is known. Their order alone is no news.
        facts: What nodes told last of their machines.
    """

    def renewed(member: Member) -> Member:
        told = facts.get(member.node_id, member.facts)
        known = addresses.get(member.node_id, ())
        moved = known and known != member.addresses and set(known) != set(member.addresses)
        if not moved and told == member.facts:
            return member
        return dataclasses.replace(member, addresses=known if moved else member.addresses, facts=told)

    members = tuple(renewed(member) for member in document.members)
    if all(new is old for new, old in zip(members, document.members, strict=True)):
        return document
    return dataclasses.replace(document, members=members)
