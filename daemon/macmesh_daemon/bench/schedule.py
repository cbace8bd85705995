"""What the head's schedule counted during some requests. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from macmesh import StagesStats
    from macmesh.v1.peer_pb2 import SchedulerStats


@dataclass(frozen=True, slots=True)
class ScheduleWork:
    """Counts between two looks at the head, and its caches at the second one.

    Attributes:
        prompts: Requests that were begun.
        prompt_tokens: Tokens of their prompts.
        prefix_hits: Those that took up kept caches.
        reused_tokens: Prompt tokens that needed no work because of it.
        entries: Kept caches at the end.
        cache_bytes: For each stage, bytes of caches spoken for at the end, kept ones included.
        cache_budget_bytes: For each stage, bytes that there are for caches.
    """

    prompts: int
    prompt_tokens: int
    prefix_hits: int
    reused_tokens: int
    entries: int
    cache_bytes: tuple[int, ...]
    cache_budget_bytes: tuple[int, ...]

    @property
    def prefix_hit_rate(self) -> float | None:
        """Share of the requests that took up kept caches; None where none was begun."""
        return self.prefix_hits / self.prompts if self.prompts else None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        rate = self.prefix_hit_rate
        return {
            "prompts": self.prompts,
            "prompt_tokens": self.prompt_tokens,
            "prefix_hits": self.prefix_hits,
            "prefix_hit_rate": None if rate is None else round(rate, 4),
            "reused_tokens": self.reused_tokens,
            "entries": self.entries,
            "cache_bytes": list(self.cache_bytes),
            "cache_budget_bytes": list(self.cache_budget_bytes),
        }


def schedule_work(before: StagesStats, after: StagesStats) -> ScheduleWork | None:
    """What was counted from one look to the next; None where the head's figures are missing or old."""
    then, now = _told(before), _told(after)
    if then is None or now is None:
        return None
    return ScheduleWork(
        prompts=now.prompts - then.prompts,
        prompt_tokens=now.prompt_tokens - then.prompt_tokens,
        prefix_hits=now.prefix_hits - then.prefix_hits,
        reused_tokens=now.reused_tokens - then.reused_tokens,
        entries=now.entries,
        cache_bytes=tuple(now.cache_bytes),
        cache_budget_bytes=tuple(now.cache_budget_bytes),
    )


def added_schedules(works: Sequence[ScheduleWork | None]) -> ScheduleWork | None:
    """The counts of several rounds as one, caches as after the last; None where one round has none."""
    known = [work for work in works if work is not None]
    if not known or len(known) < len(works):
        return None
    last = known[-1]
    return ScheduleWork(
        prompts=sum(work.prompts for work in known),
        prompt_tokens=sum(work.prompt_tokens for work in known),
        prefix_hits=sum(work.prefix_hits for work in known),
        reused_tokens=sum(work.reused_tokens for work in known),
        entries=last.entries,
        cache_bytes=last.cache_bytes,
        cache_budget_bytes=last.cache_budget_bytes,
    )


def _told(stats: StagesStats) -> SchedulerStats | None:
    for measured in stats.stages:
        if not measured.reason and measured.stats.HasField("scheduler"):
            return measured.stats.scheduler
    return None
