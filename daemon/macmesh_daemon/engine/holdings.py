"""What of the stages' caches is spoken for. Pure.

At every moment, on every stage: what the groups may hold at most, the kept entries, and what the largest change of
one batch needs besides, are within the budget.
"""

from collections.abc import Iterable

from macmesh_daemon.engine.budget import Bytes, CacheBudget, add, most
from macmesh_daemon.engine.groups import Group, group_bytes
from macmesh_daemon.engine.prefix_index import Entry, PrefixIndex
from macmesh_daemon.engine.running import Running


class Holdings:
    """The groups and the entries, in bytes.

    Args:
        budget: what there is.
        chunk_tokens: most prompt tokens in one step.
    """

    def __init__(self, budget: CacheBudget, chunk_tokens: int) -> None:
        self._budget = budget
        self._chunk_tokens = chunk_tokens
        self.groups: list[Group] = []
        self.entries = PrefixIndex()

    def entry_bytes(self, reserve_tokens: int, *, prefill: bool) -> Bytes:
        """What a kept entry costs."""
        windows = (
            self._budget.prefill(reserve_tokens, self._chunk_tokens) if prefill else self._budget.nothing
        )
        return add(self._budget.reserved(reserve_tokens), windows, self._budget.slack)

    def groups_bytes(self, target: Group | None = None, newcomer: Running | None = None) -> Bytes:
        """What the groups may hold, the largest change of a batch included.

        Args:
            target: The group that the newcomer is to join; one that is not in `groups` yet counts too.
            newcomer: A request that is not a member yet.
        """
        held, passing = self._budget.nothing, self._budget.nothing
        groups = self.groups if target is None or target in self.groups else [*self.groups, target]
        for group in groups:
            own, change = group_bytes(
                self._budget, group, self._chunk_tokens, newcomer if group is target else None
            )
            held, passing = add(held, own), most(passing, change)
        return add(held, passing)

    def entries_bytes(self, without: Iterable[int] = ()) -> Bytes:
        """What the kept entries cost."""
        left_out = set(without)
        costs = [
            self.entry_bytes(e.reserve_tokens, prefill=e.prefill)
            for e in self.entries
            if e.number not in left_out
        ]
        return add(self._budget.nothing, *costs)

    def evictions(self, needed: Bytes, spared: Entry | None = None) -> list[Entry] | None:
        """Which entries must go so that ``needed`` fits beside the others; None where it does not fit alone.

        Those that were used longest ago go first.

        Args:
            needed: All but the entries.
            spared: An entry that is not counted and does not go.
        """
        if not self._budget.fits(needed):
            return None
        gone = [spared.number] if spared else []
        victims: list[Entry] = []
        for entry in list(self.entries):
            if self._budget.fits(add(needed, self.entries_bytes(gone))):
                break
            if entry is not spared:
                victims.append(entry)
                gone.append(entry.number)
        return victims
