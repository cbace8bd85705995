"""Generations: which recovery by force the cluster goes back to."""

import hashlib
from dataclasses import replace

from .messages import ClusterDocument, Epoch, Plan, Policy

_DRAWN_BITS = 40


def recovery_count(generation: int) -> int:
    """How many recoveries by force led to this generation."""
    return generation >> _DRAWN_BITS


def next_generation(generation: int, node_id: str, secret: bytes) -> int:
    """The generation of a recovery by force of ``node_id``.

    Recoveries are counted in the upper bits, so it is above ``generation`` and whatever that was made from.
    Below are 40 bits of a hash of the node's id and of fresh random bytes: where two operators recover two
    sides at once, the sides get different generations (but for one chance in 2^40), one of which outranks the
    other, and no ballot and no epoch of one is one of the other.

    Args:
        generation: The highest that this node knows.
        node_id: This node.
        secret: Fresh random bytes.
    """
    drawn = hashlib.sha256(node_id.encode() + b"\0" + secret).digest()[: _DRAWN_BITS // 8]
    return (recovery_count(generation) + 1) << _DRAWN_BITS | int.from_bytes(drawn)


def recovered_document(document: ClusterDocument, node_id: str, generation: int) -> ClusterDocument:
    """The first document of a generation: the members of ``document``, ``node_id`` as the only voter, no plan.

    Its plan is empty but has an epoch of the new generation, so whatever ran under an older one ends wherever
    the document comes to be known. What was wanted stays wanted, and evictions that were begun go on; but not that
    of ``node_id``: a person goes on with it, and while it is marked nothing may run on it.
    """
    members = tuple(
        replace(
            member,
            voter=member.node_id == node_id,
            evicting=member.evicting and member.node_id != node_id,
        )
        for member in document.members
    )
    return replace(
        document,
        generation=generation,
        term=0,
        seq=1,
        members=members,
        plan=Plan(Epoch(generation, 0, 1)),
        policy=replace(document.policy or Policy(), tie_breaker_node_id=node_id, tie_breaker_votes=0),
    )
