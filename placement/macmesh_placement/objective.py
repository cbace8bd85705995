"""The planner's goals: best objective, then fewest bytes to load, then evenest stages."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from macmesh_placement.constrained import ConstrainedSearch, Resource, SearchTooLargeError
from macmesh_placement.problem import Choice, Problem
from macmesh_placement.tables import Additive, Integers

#: Slack of comparisons between sums of the same terms in another order.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Outcome:
    """The plan to use, the best objective of any plan, and what is proved about the bytes."""

    choice: Choice
    best_seconds: float
    fewest_bytes_proved: bool
    unproved_bytes: float = 0.0


def objective_seconds(problem: Problem, choice: Choice) -> float:
    """The objective of a plan; see `PlanRequest.objective`."""
    kind, slots = problem.request.objective, problem.request.slots
    if kind == "latency":
        return choice.latency_seconds
    if kind == "throughput":
        return choice.slowest_seconds
    return max(choice.latency_seconds, slots * choice.slowest_seconds)


def optimise(problem: Problem) -> Outcome | None:
    """The plan that the goals choose, or None where none fits.

    Raises:
        SearchTooLargeError: Shared machines make the exact search too large.
    """
    candidates = problem.singles()
    if problem.request.stage_count != 1 and len(problem.at) > 2:  # noqa: PLR2004  a cut point at least
        best = _BEST[problem.request.objective](problem)
        if best is not None:
            candidates.append(best)
    if not candidates:
        return None
    best_seconds = min(objective_seconds(problem, choice) for choice in candidates)
    limit = best_seconds * (1 + problem.request.tolerance) * (1 + ROUNDING)
    near = [choice for choice in candidates if objective_seconds(problem, choice) <= limit]
    gap_bytes = 0.0
    if any(len(choice.path) > 1 for choice in candidates) and _loads_differ(problem):
        fewest, gap_bytes = _fewest_bytes(problem, limit)
        near += [fewest] if fewest is not None else []
    chosen = min(near, key=lambda choice: (choice.load_bytes, objective_seconds(problem, choice)))
    return Outcome(_evened(problem, chosen, limit), best_seconds, gap_bytes == 0.0, gap_bytes)


def _latency_best(problem: Problem) -> Choice | None:
    path = problem.search.solve(problem.latency, problem.low)
    return None if path is None else problem.choice(path)


def _throughput_best(problem: Problem) -> Choice | None:
    return _smallest_cap(problem, lambda _choice, _cap: True)


def _balanced_best(problem: Problem) -> Choice | None:
    """The least max(latency, slots x slowest), where the one falls and the other rises."""
    slots = problem.request.slots
    fastest = _latency_best(problem)
    if fastest is None or slots * fastest.slowest_seconds <= fastest.latency_seconds:
        return fastest
    meeting = _smallest_cap(problem, lambda choice, cap: choice.latency_seconds <= slots * cap)
    options = [choice for choice in (fastest, meeting) if choice is not None]
    if meeting is not None:
        below = _solve_within(problem, np.nextafter(meeting.slowest_seconds, 0.0))
        options += [below] if below is not None else []
    return min(options, key=lambda choice: max(choice.latency_seconds, slots * choice.slowest_seconds))


_BEST: dict[str, Callable[[Problem], Choice | None]] = {
    "latency": _latency_best,
    "throughput": _throughput_best,
    "balanced": _balanced_best,
}


def _solve_within(problem: Problem, cap_seconds: float) -> Choice | None:
    path = problem.search.solve(problem.latency, problem.low_within(cap_seconds))
    return None if path is None else problem.choice(path)


def _smallest_cap(problem: Problem, accept: Callable[[Choice, float], bool]) -> Choice | None:
    """The lowest-latency plan under the smallest cap on stage times whose plan is accepted.

    ``accept`` must go on accepting as the cap grows.
    """
    times = problem.second_matrices[problem.fits & np.triu(np.ones(problem.fits.shape[1:], dtype=bool), k=1)]
    caps = np.unique(times)
    low, high, found = 0, len(caps) - 1, None
    while low <= high:
        middle = (low + high) // 2
        choice = _solve_within(problem, float(caps[middle]))
        if choice is not None and accept(choice, float(caps[middle])):
            found, high = choice, middle - 1
        else:
            low = middle + 1
    return found


def _loads_differ(problem: Problem) -> bool:
    return any(node.resident_layers or node.holds_embedding or node.holds_head for node in problem.nodes)


def _fewest_bytes(problem: Problem, limit_seconds: float) -> tuple[Choice | None, float]:
    """Several stages that load few bytes within the limit, and how many fewer are not ruled out.

    The slowest stage is capped by leaving out the stages above the cap. The latency is one bound on a sum:
    first the fewest bytes without it; then, where that is too slow, the multiplier between bytes and seconds
    that meets it; and where that leaves a gap, labels.
    """
    request = problem.request
    capped = {"latency": np.inf, "throughput": limit_seconds, "balanced": limit_seconds / request.slots}
    low = problem.low_within(capped[request.objective])
    bound = np.inf if request.objective == "throughput" else limit_seconds

    def solve(seconds_weight: float) -> Choice | None:
        cost = Additive(
            begin=problem.loads.begin + seconds_weight * problem.latency.begin,
            end=problem.loads.end + seconds_weight * problem.latency.end,
        )
        path = problem.search.solve(cost, low)
        return None if path is None else problem.choice(path)

    lightest = solve(_TIE_BREAK_BYTES_PER_SECOND)
    if lightest is None or lightest.latency_seconds <= bound:
        return lightest, 0.0
    path = problem.search.solve(problem.latency, low)
    fastest = None if path is None else problem.choice(path)
    if fastest is None or fastest.latency_seconds > bound:
        return None, 0.0
    light, within = lightest, fastest
    while True:
        gap_seconds = light.latency_seconds - within.latency_seconds
        if gap_seconds <= 0 or within.load_bytes <= light.load_bytes:
            return within, 0.0
        weight = (within.load_bytes - light.load_bytes) / gap_seconds
        middle = solve(weight)
        best_sum = within.load_bytes + weight * within.latency_seconds
        if middle is None or middle.load_bytes + weight * middle.latency_seconds >= best_sum * (1 - ROUNDING):
            break
        if middle.latency_seconds <= bound:
            within = middle
        else:
            light = middle
    least_possible = best_sum - weight * bound
    if within.load_bytes <= least_possible + 0.5:
        return within, 0.0
    return _fewest_bytes_by_labels(problem, low, bound, within, least_possible)


#: Seconds weigh so little against bytes that they only decide between equal loads.
_TIE_BREAK_BYTES_PER_SECOND = 1e-3


def _fewest_bytes_by_labels(
    problem: Problem, low: Integers, bound: float, within: Choice, least_possible: float
) -> tuple[Choice, float]:
    gap_bytes = within.load_bytes - least_possible
    if not problem.exact:
        return within, gap_bytes
    latency = Resource(
        use=np.stack([problem.latency.matrix(node) for node in range(len(problem.nodes))]),
        limit=bound + problem.row_seconds,
    )
    search = ConstrainedSearch(
        len(problem.nodes),
        problem.request.stage_count,
        [*problem.host_resources(), latency],
        cost_limit=within.load_bytes,
        label_limit=_MOST_LABELS,
    )
    try:
        path = search.solve(problem.loads, low)
    except SearchTooLargeError:
        return within, gap_bytes
    found = within if path is None else problem.choice(path)
    return (found if found.load_bytes < within.load_bytes else within), 0.0


#: Most labels for the proof of the fewest bytes: some tens of milliseconds.
_MOST_LABELS = 2_000


def _evened(problem: Problem, choice: Choice, limit_seconds: float) -> Choice:
    """Moves cuts while stage times grow more even, at no cost in bytes and within the limit.

    A tie-break: where nodes are equally fast, every split has the same latency and the search picks any.
    """
    uses_hosts = bool(problem.crowded_hosts)
    best, score = choice, _unevenness(problem, choice)
    improved = len(choice.path) > 1 and not uses_hosts
    while improved:
        improved = False
        for index in range(len(best.path) - 1):
            for step in (-1, 1):
                moved = _moved(problem, best, index, step)
                if moved is None or moved.load_bytes > best.load_bytes + 0.5:
                    continue
                if objective_seconds(problem, moved) > limit_seconds:
                    continue
                value = _unevenness(problem, moved)
                if value < score * (1 - ROUNDING):
                    best, score, improved = moved, value, True
    return best


def _unevenness(problem: Problem, choice: Choice) -> float:
    return float(sum(problem.seconds.of(*stage) ** 2 for stage in choice.path))


def _moved(problem: Problem, choice: Choice, index: int, step: int) -> Choice | None:
    left, right = choice.path[index], choice.path[index + 1]
    cut = left[2] + step
    if not left[1] < cut < right[2]:
        return None
    new_left, new_right = (left[0], left[1], cut), (right[0], cut, right[2])
    if not (problem.fits[new_left] and problem.fits[new_right]):
        return None
    path = [*choice.path]
    path[index : index + 2] = [new_left, new_right]
    return problem.choice(path)
