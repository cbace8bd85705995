"""Requests that decode together. Pure.

A request belongs to a group from the moment at which it is taken, so that the bytes of the batch that it will
join are spoken for before it begins. Its caches are its own until another request of the group has come so far too;
then both become rows of one batch.
"""

import dataclasses

from macmesh_daemon.engine.budget import Bytes, CacheBudget, add, times
from macmesh_daemon.engine.running import Running


@dataclasses.dataclass(eq=False)
class Group:
    """Requests that are, or will be, rows of one batch."""

    number: int
    """Also that of its batch."""
    members: list[Running] = dataclasses.field(default_factory=list)
    rows: list[Running] = dataclasses.field(default_factory=list)
    """Members that decode together, in the order of the batch; the only one may be alone."""
    capacity_tokens: int = 0
    """What the batch is allocated for; 0: there is no batch, and a row is alone."""
    last_decode: int = 0
    """Number of its last decode step."""

    @property
    def decodes(self) -> bool:
        """Whether a member waits for tokens beyond its first step."""
        return any(m.samples and m.samples_left > 0 and not m.ended for m in self.members)

    def ready(self, lookahead: int) -> list[Running]:
        """The rows of the next decode step, as far as it may be given out now; else empty.

        A row that has no token left to sample goes along in vain while its end is not told yet: its
        reservation has room for that one token.
        """
        if any(row.outstanding > lookahead or row.ended for row in self.rows):
            return []
        joining = [
            m
            for m in self.members
            if m not in self.rows
            and m.samples
            and m.samples_left > 0
            and m.outstanding <= lookahead
            and not m.ended
        ]
        rows = self.rows + joining
        return rows if any(row.samples_left > 0 for row in rows) else []


def needed_capacity(rows: list[Running]) -> int:
    """Tokens that a batch of these rows is to be allocated for: rows stand flush at their ends."""
    return max(row.fed for row in rows) + max(row.remaining for row in rows)


def most_capacity(group: Group, members: list[Running]) -> int:
    """Most tokens that the group's batch is ever allocated for while it has these members.

    When another row joins, each may be as long as it can become while the newcomer has all still to go.
    """
    longest = max(m.total_tokens for m in members) + max(m.remaining_as_row for m in members)
    return max(longest, group.capacity_tokens, *(m.reserve_tokens for m in members))


def group_bytes(
    budget: CacheBudget, group: Group, chunk_tokens: int, newcomer: Running | None = None
) -> tuple[Bytes, Bytes]:
    """What a group may hold at most between operations, and what a change of its batch needs besides.

    Covers every moment until the next request is taken into the group: no matter which members are rows yet,
    and in what order caches are converted. For a batch holds, cache by cache, no more than the same cache of
    the largest batch that there may be; while one is converted, both the old and the new are there.
    """
    members = group.members if newcomer is None else [*group.members, newcomer]
    held = times(len(members), budget.slack)
    for member in members:
        if not member.samples:
            held = add(held, budget.prefill(member.reserve_tokens, chunk_tokens))
    if len(members) == 1 and not group.capacity_tokens:
        return add(held, budget.reserved(members[0].reserve_tokens)), budget.nothing
    capacity = most_capacity(group, members)
    held = add(held, times(len(members), budget.reserved(capacity)))
    passing = times(len(members), budget.largest_piece(capacity)) if len(members) > 1 else budget.nothing
    return held, passing
