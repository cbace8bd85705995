"""Whether and how a request can be taken now. Pure."""

import dataclasses
from collections.abc import Iterator

from macmesh_daemon.engine.budget import CacheBudget, add, most
from macmesh_daemon.engine.groups import Group
from macmesh_daemon.engine.holdings import Holdings
from macmesh_daemon.engine.limits import CacheTraits, Limits
from macmesh_daemon.engine.prefix_index import Entry
from macmesh_daemon.engine.requests import Refused, Request
from macmesh_daemon.engine.running import Running
from macmesh_daemon.engine.sampling_parameters import sampling_refusal

_PADDING_FACTOR = 4
"""A request joins no batch where that costs so many times what it costs alone."""
_FAIR_PADDING = 1.5
"""Batches in which it costs less than this many times are as good as each other."""


@dataclasses.dataclass(frozen=True)
class Admission:
    """How a request is taken."""

    running: Running
    """With the tokens that it takes up, and without a slot."""
    group: Group
    evicted: tuple[Entry, ...]
    """Entries that make room."""
    entry: Entry | None
    """The entry whose caches it takes up."""


@dataclasses.dataclass(frozen=True)
class _Reuse:
    entry: Entry
    tokens: int
    reserve_tokens: int


def total_tokens(request: Request, limits: Limits) -> int:
    """Most tokens that will go through: the prompt and all that may be generated."""
    return len(request.prompt) + (request.max_tokens or limits.context_tokens - len(request.prompt))


def refusal_of(request: Request, limits: Limits, budget: CacheBudget) -> Refused | None:
    """Why a request can never be served, before any work is done."""
    context, prompt = limits.context_tokens, len(request.prompt)
    if not request.request_id or not request.prompt:
        return Refused(request.request_id, "INVALID_ARGUMENT", "a request needs an id and a prompt")
    if request.max_tokens < 0:
        return Refused(
            request.request_id,
            "INVALID_ARGUMENT",
            f"max_tokens is {request.max_tokens}; it must be 0 or more",
        )
    if wrong := sampling_refusal(request.sampling):
        return Refused(request.request_id, "INVALID_ARGUMENT", wrong)
    # Without a limit of its own a request still needs room for one token.
    if prompt + max(request.max_tokens, 1) > context:
        return Refused(
            request.request_id,
            "CONTEXT_LENGTH_EXCEEDED",
            f"{prompt} prompt tokens and {max(request.max_tokens, 1)} new ones are more than the "
            f"{context} that the plan guarantees; ask for at most {max(context - prompt, 0)} new tokens",
        )
    needed = total_tokens(request, limits)
    if not budget.fits(budget.alone(needed, limits.prefill_chunk_tokens)):
        fitting = budget.most_tokens(context, limits.prefill_chunk_tokens)
        return Refused(
            request.request_id,
            "RESOURCE_EXHAUSTED",
            f"{prompt} prompt tokens and {needed - prompt} new ones need more cache than the stages have; "
            f"{fitting} tokens would fit: ask for at most {max(fitting - prompt, 0)} new tokens",
        )
    return None


class Admissions:
    """Finds a group, and kept caches, for a request.

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

    def find(self, request: Request, order: int, new_group: Group, now: float) -> Admission | None:
        """How the request can be taken beside what runs; None where it does not fit yet.

        Args:
            request: What waits.
            order: Its number among those taken.
            new_group: An empty group, for a request that begins one.
            now: Of the injected clock.
        """
        total = total_tokens(request, self._limits)
        for reuse in self._reuses(request, total):
            running = Running(
                request=request,
                order=order,
                slot=-1,
                total_tokens=total,
                reserve_tokens=reuse.reserve_tokens if reuse else total,
                fed=reuse.tokens if reuse else 0,
                began=now,
            )
            for group in self._groups(running, new_group):
                needed = self._holdings.groups_bytes(group, running)
                if reuse is not None:
                    needed = most(needed, add(needed, self._moving(reuse)))
                victims = self._holdings.evictions(needed, reuse.entry if reuse else None)
                if victims is not None:
                    return Admission(running, group, tuple(victims), reuse.entry if reuse else None)
        return None

    def _reuses(self, request: Request, total: int) -> Iterator[_Reuse | None]:
        found = None
        if request.reuse_prefix:
            found = self._holdings.entries.longest(request.prompt, self._traits.trim_below_tokens)
        if found is not None and found[1] >= self._limits.keep_least_tokens:
            entry, tokens = found
            yield _Reuse(entry, tokens, total)
            if entry.reserve_tokens > total:
                # Where there is no room to convert the caches, they stay as large as they are.
                yield _Reuse(entry, tokens, entry.reserve_tokens)
        yield None

    def _moving(self, reuse: _Reuse) -> tuple[int, ...]:
        """What it takes, besides the new caches, to convert an entry's, one cache at a time."""
        before, after = reuse.entry.reserve_tokens, reuse.reserve_tokens
        if before == after:
            return self._budget.nothing
        larger = self._budget.reserved(max(before, after))
        own = self._budget.reserved(after)
        excess = tuple(more - less for more, less in zip(larger, own, strict=True))
        return add(excess, self._budget.largest_piece(min(before, after)))

    def _groups(self, running: Running, new_group: Group) -> list[Group]:
        """Where the request may go, best first: a new batch while stages would idle, else the shortest fair one."""
        holdings = self._holdings
        if self._traits.unbatchable:
            return [new_group]
        nothing_new = holdings.groups_bytes()
        alone = sum(self._budget.reserved(running.total_tokens))
        rated = []
        for group in holdings.groups:
            members = [m for m in group.members if not m.ended]
            if not members or len(group.members) >= self._limits.batch_rows:
                continue
            cost = sum(holdings.groups_bytes(group, running)) - sum(nothing_new)
            if cost <= _PADDING_FACTOR * alone:
                rated.append((cost > _FAIR_PADDING * alone, len(members), cost, group.number, group))
        existing = [group for *_, group in sorted(rated, key=lambda item: item[:4])]
        if len(holdings.groups) < self._limits.stages:
            return [new_group, *existing]
        return [*existing, new_group]
