"""Whether a finished request's caches stay. Pure."""

import dataclasses

from macmesh_daemon.engine.budget import CacheBudget, add
from macmesh_daemon.engine.holdings import Holdings
from macmesh_daemon.engine.limits import CacheTraits, Limits
from macmesh_daemon.engine.prefix_index import Entry, can_cut, common_prefix, packed
from macmesh_daemon.engine.running import Running


@dataclasses.dataclass(frozen=True)
class Kept:
    """What becomes of the caches."""

    entry: Entry | None = None
    """None: they are freed."""
    evicted: tuple[Entry, ...] = ()
    """Older entries that make room, or that the new one holds too."""


class Keeping:
    """Decides what is kept, and makes the entries.

    Args:
        limits: what the plan allows.
        budget: what the stages have.
        traits: what the caches allow.
        holdings: what is held; it is looked at and not changed.
    """

    def __init__(self, limits: Limits, budget: CacheBudget, traits: CacheTraits, holdings: Holdings) -> None:
        self._limits = limits
        self._budget = budget
        self._traits = traits
        self._holdings = holdings
        self._numbers = 0

    def decide(self, running: Running, *, is_row: bool) -> Kept:
        """What becomes of the caches of a request that still counts as a member of its group.

        Args:
            running: The request that has ended.
            is_row: Its caches are a row of a batch, of which an entry is a copy.
        """
        length = running.known_tokens
        if not running.request.keep or length < self._limits.keep_least_tokens:
            return Kept()
        if length < running.fed and not can_cut(running.fed, self._traits.trim_below_tokens):
            return Kept()
        tokens = packed(running.tokens[:length])
        covered = self._covered(tokens, length)
        if covered is None:
            return Kept()
        prefill = not running.samples
        held = self._holdings.groups_bytes()
        if is_row:
            shorter = add(held, self._holdings.entry_bytes(length, prefill=prefill))
        else:
            shorter = add(held, self._budget.largest_piece(length))
        victims = self._holdings.evictions(shorter) if is_row else self._fits(shorter)
        if victims is not None:
            reserve = length
        elif is_row:
            return Kept()
        else:
            # No room to convert them: the caches stay as they are, in the room that they had.
            reserve, victims = running.reserve_tokens, []
        gone = {entry.number: entry for entry in [*covered, *victims]}
        for entry in self._holdings.entries:
            if len(self._holdings.entries) - len(gone) < self._limits.entries:
                break
            gone.setdefault(entry.number, entry)
        if not self._limits.entries:
            return Kept()
        self._numbers += 1
        entry = Entry(self._numbers, length, tokens, reserve, prefill)
        return Kept(entry, tuple(gone.values()))

    def _fits(self, needed: tuple[int, ...]) -> list[Entry] | None:
        """Nothing is evicted only to make an entry smaller."""
        return [] if self._budget.fits(add(needed, self._holdings.entries_bytes())) else None

    def _covered(self, tokens: bytes, length: int) -> list[Entry] | None:
        """Entries that the new one makes superfluous; None where it is superfluous itself.

        Only where caches can be cut back to any length does a longer entry serve for a shorter one.
        """
        covered = []
        for entry in self._holdings.entries:
            common = common_prefix(entry.packed, tokens)
            if common == length == entry.tokens:
                covered.append(entry)
            elif self._traits.trim_below_tokens is not None:
                continue
            elif common == length:
                return None
            elif common == entry.tokens:
                covered.append(entry)
        return covered
