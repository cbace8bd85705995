"""Many seeds, on several processes, and what came of them."""

import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .options import draw
from .run import Outcome, RunFailedError, run

_CHUNK = 8


@dataclass
class Summary:
    """What many runs were like."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """The figures, for people."""
        seeds = len(self.outcomes) + len(self.failures)
        events = sum(o.events for o in self.outcomes)
        steps = sum(o.steps for o in self.outcomes)
        yield (
            f"{seeds} seeds, {len(self.failures)} violations, {events:,} events, {steps:,} checked steps, "
            f"{sum(o.virtual_seconds for o in self.outcomes):,.0f} virtual seconds in {self.seconds:.1f} s: "
            f"{events / self.seconds:,.0f} events/s, {steps / self.seconds:,.0f} steps/s"
        )
        yield f"elections won: {sum(o.terms for o in self.outcomes):,}"
        requests = [sum(counts) for counts in zip(*(o.requests for o in self.outcomes), strict=True)]
        if any(requests):
            accepted, resumed, replayed = requests
            ends: Counter[str] = Counter()
            for outcome in self.outcomes:
                ends.update(dict(outcome.ends))
            yield (
                f"requests accepted: {accepted:,}, {resumed:,} of them taken up; {replayed:,} runs after a lost one; "
                + ", ".join(f"{name} {count:,}" for name, count in ends.most_common())
            )
        yield "after healing, until all agree:          " + distribution(
            [o.heal_seconds for o in self.outcomes]
        )
        for low, high in ((2, 2), (3, 3), (4, 5), (6, 8)):
            seconds = [
                o.failover_seconds
                for o in self.outcomes
                if low <= o.nodes <= high and o.failover_seconds is not None
            ]
            nodes = f"{low}" if low == high else f"{low}-{high}"
            yield f"failover, {nodes:>3} nodes, healthy network:  " + distribution(seconds)


def distribution(seconds: list[float]) -> str:
    """Median, 99th percentile and the worst."""
    if not seconds:
        return "none"
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"median {statistics.median(ordered):.2f} s, p99 {p99:.2f} s, max {ordered[-1]:.2f} s (n={len(ordered)})"


def run_seed(seed: int, profile: str = "") -> Outcome | str:
    """Run one seed; the outcome, or what went wrong."""
    try:
        return run(draw(seed, profile))
    except RunFailedError as error:
        return str(error)


def _run_with_profile(job: tuple[int, str]) -> Outcome | str:
    return run_seed(*job)


def run_many(
    seeds: range,
    *,
    jobs: int = 1,
    profile: str = "",
    max_failures: int = 3,
    limit_seconds: float = float("inf"),
) -> Summary:
    """Run seeds, on ``jobs`` processes; stops early at the ``max_failures``-th failure or at the limit."""
    summary = Summary()
    begin = time.perf_counter()
    work = ((seed, profile) for seed in seeds)
    if jobs == 1:
        _collect(summary, map(_run_with_profile, work), max_failures, begin + limit_seconds)
    else:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            _collect(
                summary,
                pool.imap_unordered(_run_with_profile, work, _CHUNK),
                max_failures,
                begin + limit_seconds,
            )
            pool.terminate()
    summary.seconds = time.perf_counter() - begin
    return summary


def _collect(summary: Summary, results: Iterator[Outcome | str], max_failures: int, end: float) -> None:
    for result in results:
        if time.perf_counter() > end:
            return
        if isinstance(result, str):
            summary.failures.append(result)
            if len(summary.failures) >= max_failures:
                return
        else:
            summary.outcomes.append(result)
