"""Who votes with how much weight, and how that changes safely.

A quorum is more than half of the voters' weight. Two quorums of one document share a voter. So do a quorum of
one document and a quorum of the next, where one voter's weight differs by one: with total weight W, the two
weigh at least floor(W/2) + 1 and floor((W + 1)/2) + 1, together W + 2, and only W + 1 is there to share. That
is why `next_weight_change` moves one unit at a time, and why the tie-breaker's extra vote is written in the
document: were it worked out from the number of voters, one join would move two units, and the old quorum {A}
of the voters A (2 votes) and B would not meet the new quorum {B, C} of A, B and C. The coordinator makes a
change only on a document that is committed in its own term.
"""

import dataclasses
from typing import TYPE_CHECKING

from .messages import ClusterDocument, Member, Policy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


def weights(document: ClusterDocument) -> dict[str, int]:
    """Votes of each voter."""
    votes = {member.node_id: 1 for member in document.members if member.voter}
    policy = document.policy or Policy()
    if policy.tie_breaker_node_id in votes:
        votes[policy.tie_breaker_node_id] += policy.tie_breaker_votes
    return votes


def is_quorum(document: ClusterDocument, node_ids: "Collection[str]") -> bool:
    """Whether these nodes outweigh half of the voters. Nobody is a quorum of a document without voters."""
    return outweighs(weights(document), node_ids)


def outweighs(votes: "Mapping[str, int]", node_ids: "Collection[str]") -> bool:
    """Whether these nodes hold more than half of the votes."""
    return 2 * sum(vote for node_id, vote in votes.items() if node_id in node_ids) > sum(votes.values())


def founding_document(founder: Member, others: "Collection[Member]", max_voters: int) -> ClusterDocument:
    """The first document. The founder votes and breaks ties; others vote while there is room."""
    ranked = sorted(others, key=lambda member: bool(member.facts and member.facts.portable))
    voters = {founder.node_id, *(member.node_id for member in ranked if member.voter)}
    for member in reversed(ranked):
        if len(voters) > max_voters:
            voters.discard(member.node_id)
    members = tuple(
        dataclasses.replace(member, voter=member.node_id in voters) for member in (founder, *others)
    )
    return ClusterDocument(
        generation=1,
        term=0,
        seq=1,
        members=members,
        policy=Policy(tie_breaker_node_id=founder.node_id, tie_breaker_votes=int(len(voters) % 2 == 0)),
    )


def next_weight_change(
    document: ClusterDocument,
    *,
    coordinator: str,
    alive: "Collection[str]",
    dead: "Collection[str]",
    electable: "Collection[str]",
    max_voters: int,
    gone: "Collection[str] | None" = None,
    answering: "Collection[str] | None" = None,
) -> ClusterDocument:
    """Move the voters one unit of weight towards the goal; gives ``document`` itself where it is reached.

    The goal: up to ``max_voters`` voters, machines that stay at their place first, dead voters replaced where
    another can take over, no voter that is being evicted, and one extra vote for the tie-breaker while their
    number is even. No step is taken after which those that answer are no quorum: it could not be committed.

    Args:
        document: A document committed in the coordinator's own term.
        coordinator: Keeps its vote.
        alive: Members that answer.
        dead: Members that are known to be gone.
        electable: Members that may become voters, alive or not.
        max_voters: Most voters.
        gone: Members that are gone for so long that they are replaced; ``dead`` where None.
        answering: Members that store what they are sent, also where they are about to go; ``alive`` where
            None.
    """
    policy = document.policy or Policy()
    storing = {coordinator, *(alive if answering is None else answering)}

    def viable(changed: ClusterDocument) -> bool:
        return is_quorum(changed, storing)

    voters = [member for member in document.members if member.voter]
    if policy.tie_breaker_votes and all(m.node_id != policy.tie_breaker_node_id for m in voters):
        return _set_tie_breaker(document, policy.tie_breaker_node_id, 0)
    evicted = [m.node_id for m in voters if m.evicting and m.node_id != coordinator]
    if evicted:
        steps = (step for n in evicted for step in _eviction_steps(document, voters, n, coordinator, dead))
        return next((step for step in steps if viable(step)), document)
    bench = [
        m
        for m in document.members
        if not m.voter and not m.evicting and m.node_id in electable and m.node_id in alive
    ]
    bench.sort(key=_is_portable)
    if bench and len(voters) < max_voters:
        grown = _set_voter(document, bench[0].node_id, voter=True)
        return grown if viable(grown) else document
    away = dead if gone is None else gone
    leaver = _leaver(voters, bench, coordinator=coordinator, dead=away, max_voters=max_voters)
    if leaver is not None:
        if policy.tie_breaker_votes and leaver == policy.tie_breaker_node_id:
            changed = _set_tie_breaker(document, leaver, 0)
        else:
            changed = _set_voter(document, leaver, voter=False)
        return changed if viable(changed) else document
    changed = _with_tie_breaker(document, voters, policy, alive=alive, dead=dead)
    return changed if changed is document or viable(changed) else document


def _with_tie_breaker(
    document: ClusterDocument,
    voters: list[Member],
    policy: Policy,
    *,
    alive: "Collection[str]",
    dead: "Collection[str]",
) -> ClusterDocument:
    """Move the extra vote towards where it belongs."""
    holder = policy.tie_breaker_node_id
    holder_serves = any(m.node_id == holder and not m.evicting for m in voters) and holder not in dead
    even = len(voters) % 2 == 0
    heirs = [member.node_id for member in voters if member.node_id in alive and not member.evicting]
    if policy.tie_breaker_votes:
        # A dead holder's extra vote is moved by way of having none: never two units at once.
        return document if even and (holder_serves or not heirs) else _set_tie_breaker(document, holder, 0)
    if even and (holder_serves or heirs):
        return _set_tie_breaker(document, holder if holder_serves else heirs[0], 1)
    if not holder_serves and heirs and holder != heirs[0]:
        return _set_tie_breaker(document, heirs[0], 0)
    return document


def _eviction_steps(
    document: ClusterDocument,
    voters: list[Member],
    evicted: str,
    coordinator: str,
    dead: "Collection[str]",
) -> "Iterator[ClusterDocument]":
    """The next steps towards ``evicted`` without a vote, the best first.

    Its vote goes at once where the rest that answers is a quorum then. Where it is not, the coordinator gets
    the extra vote first, or voters that are dead anyway go.
    """
    policy = document.policy or Policy()
    if policy.tie_breaker_votes and policy.tie_breaker_node_id == evicted:
        yield _set_tie_breaker(document, evicted, 0)
    else:
        yield _set_voter(document, evicted, voter=False)
    if not policy.tie_breaker_votes:
        yield _set_tie_breaker(document, coordinator, 1)
    for member in voters:
        is_holder = policy.tie_breaker_votes and member.node_id == policy.tie_breaker_node_id
        if member.node_id in dead and member.node_id != coordinator and not is_holder:
            yield _set_voter(document, member.node_id, voter=False)
    if policy.tie_breaker_votes and policy.tie_breaker_node_id in dead:
        yield _set_tie_breaker(document, policy.tie_breaker_node_id, 0)


def _leaver(
    voters: list[Member],
    bench: list[Member],
    *,
    coordinator: str,
    dead: "Collection[str]",
    max_voters: int,
) -> str | None:
    """The voter to retire, if any: one too many, or one whom somebody on the bench does better than."""
    others = [member for member in reversed(voters) if member.node_id != coordinator]
    gone = [member for member in others if member.node_id in dead]
    portable = [member for member in others if _is_portable(member)]
    if len(voters) > max_voters:
        return next(iter([*gone, *portable, *others])).node_id if others else None
    if bench and gone:
        return gone[0].node_id
    if bench and portable and not _is_portable(bench[0]):
        return portable[0].node_id
    return None


def _is_portable(member: Member) -> bool:
    return bool(member.facts and member.facts.portable)


def _set_voter(document: ClusterDocument, node_id: str, *, voter: bool) -> ClusterDocument:
    members = tuple(
        dataclasses.replace(member, voter=voter) if member.node_id == node_id else member
        for member in document.members
    )
    return dataclasses.replace(document, members=members)


def _set_tie_breaker(document: ClusterDocument, node_id: str, votes: int) -> ClusterDocument:
    policy = dataclasses.replace(
        document.policy or Policy(), tie_breaker_node_id=node_id, tie_breaker_votes=votes
    )
    return dataclasses.replace(document, policy=policy)
