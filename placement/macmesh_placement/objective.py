"""The planner's goals: best objective, then hops over RDMA only, then fewest bytes to load, then evenest stages."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from macmesh_placement.hops import Hops
from macmesh_placement.movement import fewest_bytes
from macmesh_placement.problem import Choice, Problem
from macmesh_placement.tables import Floats

#: Slack of comparisons between sums of the same terms in another order.
ROUNDING = 1e-9
#: Bytes are whole: half of one is rounding.
_HALF_BYTE = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """The plan to use, the best objective of any plan, and what is proved.

    Attributes:
        choice: The plan.
        best_seconds: The best objective found.
        unproved_seconds: By how much a plan might be better still; 0 where none is.
        unproved_bytes: How many fewer bytes a plan within the tolerance might load; 0 where none does.
        preference_proved: No plan over RDMA links alone was overlooked.
    """

    choice: Choice
    best_seconds: float
    unproved_seconds: float = 0.0
    unproved_bytes: float = 0.0
    preference_proved: bool = True


@dataclass(frozen=True, slots=True)
class Best:
    """The best pipeline of several stages, and a bound below which there is none."""

    choice: Choice
    bound_seconds: float


def objective_seconds(problem: Problem, choice: Choice) -> float:
    """The objective of a plan; see `PlanRequest.objective`."""
    return _seconds(problem, choice.latency_seconds, choice.slowest_seconds)


def _seconds(problem: Problem, latency: float, slowest: float) -> float:
    kind, slots = problem.request.objective, problem.request.slots
    if kind == "latency":
        return latency
    return slowest if kind == "throughput" else max(latency, slots * slowest)


def optimise(problem: Problem) -> Outcome | None:
    """The plan that the goals choose, or None where none fits.

    Raises:
        SearchTooLargeError: Shared machines make the exact search too large.
    """
    candidates = [*problem.singles(), *problem.tensors()]
    bound = np.inf
    best = _BEST[problem.request.objective](problem) if problem.several_stages else None
    if best is not None:
        candidates.append(best.choice)
        bound = best.bound_seconds
    if not candidates:
        return None
    best_seconds = min(objective_seconds(problem, choice) for choice in candidates)
    limit = best_seconds * (1 + problem.request.tolerance) * (1 + ROUNDING)
    current = problem.current()
    candidates += [current] if current is not None else []
    near = [choice for choice in candidates if objective_seconds(problem, choice) <= limit]
    near, hops, preference_proved = _preferred(problem, near, limit)
    unproved_bytes = 0.0
    if problem.several_stages and hops is not None and _loads_differ(problem):
        known = min(near, key=lambda choice: choice.load_bytes)
        fewest, unproved_bytes = fewest_bytes(problem, *_caps(problem, limit), hops, known)
        near += [fewest] if fewest is not None else []

    def rank(choice: Choice) -> tuple[float, bool, float]:
        is_current = current is not None and choice.path == current.path
        return choice.load_bytes, not is_current, objective_seconds(problem, choice)

    chosen = min(near, key=rank)
    if current is None or chosen.path != current.path:
        chosen = _evened(problem, chosen, limit)
    return Outcome(
        chosen,
        best_seconds,
        max(0.0, best_seconds - bound) if bound < best_seconds * (1 - ROUNDING) else 0.0,
        unproved_bytes,
        preference_proved,
    )


def _caps(problem: Problem, limit: float) -> tuple[float, float]:
    """The most seconds of a stage and of the whole that an objective within the limit allows."""
    kind = problem.request.objective
    slowest = {"latency": np.inf, "throughput": limit, "balanced": limit / problem.request.slots}[kind]
    return float(slowest), np.inf if kind == "throughput" else limit


def _preferred(problem: Problem, near: list[Choice], limit: float) -> tuple[list[Choice], Hops | None, bool]:
    """The plans to choose among, the hops that pipelines of several stages may use, and whether it is proved.

    A plan whose hops are all over RDMA beats one with any other hop, where the cluster has RDMA links at all.
    """
    if not problem.links.has_rdma or problem.links.uniform:
        return near, problem.hops, True
    fastest, proved = None, True
    if problem.several_stages:
        slowest, latency = _caps(problem, limit)
        fastest, _, proved = fastest_within(problem, slowest, problem.rdma_hops)
        if fastest is not None and (
            not fastest.all_rdma or fastest.latency_seconds > latency or fastest.slowest_seconds > slowest
        ):
            fastest = None
    preferred = [choice for choice in near if choice.all_rdma]
    if fastest is not None:
        return [*preferred, fastest], problem.rdma_hops, True
    return (preferred, None, proved) if preferred else (near, problem.hops, proved)


def fastest_within(problem: Problem, slowest_seconds: float, hops: Hops) -> tuple[Choice | None, float, bool]:
    """The pipeline of least latency over these hops whose stages take at most that long.

    Returns:
        The pipeline, if there is one; a bound below which no latency lies; and whether both are exact.
    """
    windows = problem.windows_within(slowest_seconds)
    path = problem.cheapest(problem.seconds, windows, hops)
    if path is None:
        return None, np.inf, problem.exact
    choice = problem.choice(path)
    if len(path) == 1 or not problem.exact:
        return choice, choice.latency_seconds, problem.exact
    back = hops.of_path([node for node, _, _ in path])[-1]
    if back <= hops.least_back * (1 + ROUNDING):
        return choice, choice.latency_seconds, True
    known = choice.latency_seconds if np.isfinite(back) else np.inf
    open_seconds = sum(problem.seconds.of(*stage) for stage in path)
    open_seconds += sum(hops.of_path([node for node, _, _ in path])[:-1])
    closed, exact = problem.cheapest_closed(problem.seconds, windows, hops, known * (1 - ROUNDING))
    if closed is not None:
        choice = problem.choice(closed)
    elif not np.isfinite(back):
        return None, np.inf if exact else open_seconds + hops.least_back, exact
    return choice, choice.latency_seconds if exact else open_seconds + hops.least_back, exact


def _latency_best(problem: Problem) -> Best | None:
    choice, bound, _ = fastest_within(problem, np.inf, problem.hops)
    return None if choice is None else Best(choice, bound)


def _throughput_best(problem: Problem) -> Best | None:
    cap = _smallest_cap(problem)
    if cap is None:
        return None
    path = problem.cheapest(problem.seconds, problem.windows_within(cap), problem.hops)
    if path is None:
        return None
    choice = problem.choice(path)
    return Best(choice, min(cap, choice.slowest_seconds))


def _smallest_cap(problem: Problem) -> float | None:
    """The least time of the slowest stage of any pipeline; None where no pipeline fits."""
    if not problem.reachable(problem.low):
        return None
    low, high = 0.0, float((problem.seconds.begin[:, :1] + problem.seconds.end[:, -1:]).max())
    enough = 1e-3 if problem.exact else 1e-10
    while high - low > enough * high:
        middle = (low + high) / 2
        if problem.reachable(problem.low_within(middle)):
            high = middle
        else:
            low = middle
    if not problem.exact:
        return high
    caps = _stage_times(problem, low, high)
    first, last = 0, len(caps) - 1
    while first < last:
        middle_at = (first + last) // 2
        if problem.reachable(problem.low_within(float(caps[middle_at]))):
            last = middle_at
        else:
            first = middle_at + 1
    return float(caps[first]) if len(caps) else high


def _stage_times(problem: Problem, above: float, upto: float) -> Floats:
    """The times of stages that fit, ascending, above one and up to another."""
    count = len(problem.at)
    found = []
    begins = np.arange(count)[:, None]
    for node in range(len(problem.nodes)):
        times = problem.seconds.matrix(node)
        inside = (times > above * (1 - 1e-12)) & (times <= upto * (1 + 1e-12))
        inside &= (begins >= problem.low[node][None, :]) & (begins < np.arange(count)[None, :])
        found.append(times[inside])
    every = np.sort(np.concatenate(found))
    distinct: Floats = every[
        np.concatenate([np.ones(min(1, len(every)), dtype=bool), every[1:] > every[:-1]])
    ]
    return distinct


def _balanced_best(problem: Problem) -> Best | None:
    """The least max(latency, slots x slowest), where the one falls and the other rises with the cap on stages.

    ``f(cap)`` is the least latency of pipelines whose stages take at most ``cap``. Each pipeline found narrows
    the caps in which a better one could lie: it would have a latency below the best value and a slowest stage
    below best value / slots; and a latency of at least f at the upper end.
    """
    slots = problem.request.slots
    fastest, bound, _ = fastest_within(problem, np.inf, problem.hops)
    if fastest is None:
        return None
    best, value = fastest, max(fastest.latency_seconds, slots * fastest.slowest_seconds)
    if slots * fastest.slowest_seconds <= fastest.latency_seconds:
        return Best(fastest, bound)
    least_latency, unproved = bound, np.inf
    # Caps below this cannot beat a latency of at least `bound`, but may tie: they are looked at first.
    low, high, cap = 0.0, fastest.slowest_seconds, bound / slots
    while True:
        found, bound, exact = fastest_within(problem, cap, problem.hops)
        if found is None:
            low = max(low, cap)
        else:
            reached = max(found.latency_seconds, slots * found.slowest_seconds)
            if reached < value:
                best, value = found, reached
            if not exact:
                unproved = min(unproved, bound)
            if found.latency_seconds >= slots * cap:
                low = max(low, cap)
            else:
                high, least_latency = min(cap, found.slowest_seconds), max(least_latency, bound)
            high = min(high, value / slots)
        if value <= max(least_latency, slots * low) * (1 + ROUNDING):
            break
        times = _stage_times(problem, low, high)
        times = times[(times > low * (1 + 1e-12)) & (times < high * (1 - 1e-12))]
        if not len(times):
            break
        cap = float(times[len(times) // 2])
    return Best(best, min(value, unproved))


_BEST: dict[str, Callable[[Problem], Best | None]] = {
    "latency": _latency_best,
    "throughput": _throughput_best,
    "balanced": _balanced_best,
}


def _loads_differ(problem: Problem) -> bool:
    return any(node.resident_layers or node.holds_embedding or node.holds_head for node in problem.nodes)


def _evened(problem: Problem, choice: Choice, limit_seconds: float) -> Choice:
    """Moves cuts while stage times grow more even, at no cost in bytes and within the limit.

    A tie-break: where nodes are equally fast, every split has the same latency and the search picks any.
    """
    path = list(choice.path)
    improved = len(path) > 1 and choice.tensor is None and not problem.crowded_hosts
    hop_seconds = choice.latency_seconds - sum(problem.seconds.of(*stage) for stage in path)
    times = [problem.seconds.of(*stage) for stage in path]
    while improved:
        improved = False
        for left, right in pairwise(range(len(path))):
            for step in (-1, 1):
                moved = _moved(problem, path[left], path[right], step)
                if moved is None:
                    continue
                new = [problem.seconds.of(*stage) for stage in moved]
                more_even = new[0] ** 2 + new[1] ** 2 < (times[left] ** 2 + times[right] ** 2) * (
                    1 - ROUNDING
                )
                if not more_even:
                    continue
                changed = [*times[:left], *new, *times[right + 1 :]]
                if _seconds(problem, sum(changed) + hop_seconds, max(changed)) <= limit_seconds:
                    path[left : right + 1], times, improved = moved, changed, True
    return problem.choice(path) if path != list(choice.path) else choice


def _moved(
    problem: Problem, left: tuple[int, int, int], right: tuple[int, int, int], step: int
) -> list[tuple[int, int, int]] | None:
    """The two stages with the cut between them moved; None where that does not fit or loads more bytes."""
    cut = left[2] + step
    if not left[1] < cut < right[2]:
        return None
    moved = [(left[0], left[1], cut), (right[0], cut, right[2])]
    if not all(problem.fits(stage) for stage in moved):
        return None
    before = sum(problem.loads.of(*stage) for stage in (left, right))
    return moved if sum(problem.loads.of(*stage) for stage in moved) <= before + _HALF_BYTE else None
