"""The fewest bytes to load among pipelines within bounds on time.

The slowest stage is capped by leaving out the stages above the cap. The latency is a bound on a sum. First the
fewest bytes without it; then, where that is too slow, the price of a second in bytes at which the dearest plan
within the bound and the cheapest plan beyond it meet (Lagrangian relaxation; Handler and Zang, "A dual
algorithm for the constrained shortest path problem", Networks 10(4), 1980). What remains between the best plan
found and the bound so proved is closed by labels, which the three tables of the way bound closely.
"""

from dataclasses import dataclass

import numpy as np

from macmesh_placement.constrained import Combined, Criterion, SearchTooLargeError
from macmesh_placement.hops import Hops
from macmesh_placement.problem import Choice, Problem
from macmesh_placement.tables import Additive, Floats
from macmesh_placement.windows import Windows

#: Most labels for the proof.
_MOST_LABELS = 300_000
#: Labels of the first attempt.
_FEW_LABELS = 20_000
#: Limits on the bytes to try then, as shares of the way from what is proved to what is found.
_SHARES = (0.25, 0.55)
#: Seconds weigh so little against bytes that they only decide between equal loads.
_TIE_BREAK_BYTES_PER_SECOND = 1e-3
_ROUNDING = 1e-9
#: Bytes are whole: half of one is rounding.
_HALF_BYTE = 0.5


@dataclass(frozen=True, slots=True)
class _Found:
    """A plan, its latency with the least way back, and the table it comes from."""

    choice: Choice
    open_seconds: float
    table: Floats | None
    cost: Additive
    hops: Hops


class _Movement:
    def __init__(self, problem: Problem, windows: Windows, latency: float, hops: Hops) -> None:
        self.problem = problem
        self.windows = windows
        self.latency = latency
        self.hops = hops
        self.fastest: _Found | None = None

    def solve(self, load_weight: float, seconds_weight: float) -> _Found | None:
        """The plan of the least weighted sum of bytes and seconds, the way back at its least."""
        problem = self.problem
        cost = Additive(
            begin=load_weight * problem.loads.begin + seconds_weight * problem.seconds.begin,
            end=load_weight * problem.loads.end + seconds_weight * problem.seconds.end,
        )
        hops = self.hops.scaled(seconds_weight)
        table = None
        if problem.exact and not problem.crowded_hosts:
            subsets = problem.subsets_for(hops)
            table = subsets.table(cost, self.windows, hops)
            path = subsets.best_path(table, cost, self.windows, hops)
        else:
            path = problem.cheapest(cost, self.windows, hops)
        if path is None:
            return None
        choice = problem.choice(path)
        open_seconds = choice.latency_seconds
        if len(path) > 1:
            back = problem.hops.of_path([node for node, _, _ in path])[-1]
            open_seconds += self.hops.least_back - back
        return _Found(choice, open_seconds, table, cost, hops)

    def within(self, choice: Choice) -> bool:
        """Whether the plan keeps the bound and hops only where it may."""
        if len(choice.path) > 1:
            hops = self.hops.of_path([node for node, _, _ in choice.path])
            if not np.isfinite(hops).all():
                return False
        return choice.latency_seconds <= self.latency


def fewest_bytes(
    problem: Problem, slowest_seconds: float, latency_seconds: float, hops: Hops, known: Choice
) -> tuple[Choice | None, float]:
    """The pipeline of several stages that loads the fewest bytes within the bounds.

    Args:
        problem: The problem.
        slowest_seconds: Most seconds of a stage.
        latency_seconds: Most seconds of all stages and hops.
        hops: The hops that it may take.
        known: A plan within the bounds; only plans that load less are of interest.

    Returns:
        The pipeline, None where none loads less than what is known; and how many fewer bytes are not ruled out.
    """
    if known.load_bytes < _HALF_BYTE:
        return None, 0.0
    movement = _Movement(problem, problem.windows_within(slowest_seconds), latency_seconds, hops)
    light = movement.solve(1.0, _TIE_BREAK_BYTES_PER_SECOND)
    if light is None or light.choice.load_bytes >= known.load_bytes - _HALF_BYTE:
        return None, 0.0
    if movement.within(light.choice):
        return light.choice, 0.0
    return _proved(movement, light, known)


def _proved(movement: _Movement, light: _Found, known: Choice) -> tuple[Choice | None, float]:
    """As `fewest_bytes`, where the lightest plan is too slow."""
    problem = movement.problem
    found, least_bytes, priced = _priced(movement, light, known)
    best = found if found is not None else known
    if best.load_bytes <= least_bytes + _HALF_BYTE:
        return found, 0.0
    if not problem.exact:
        return found, best.load_bytes - least_bytes
    try:
        better = _by_labels(movement, light, priced, (least_bytes, best.load_bytes))
    except SearchTooLargeError:
        return found, best.load_bytes - least_bytes
    return (better if better is not None else found), 0.0


def _priced(
    movement: _Movement, light: _Found, known: Choice
) -> tuple[Choice | None, float, tuple[float, _Found] | None]:
    """Plans along the lower hull of bytes against seconds, towards the bound.

    Returns:
        The lightest found within the bound, if lighter than what is known; a bound on the bytes of all plans;
        and the last price of a second, with the table of bytes and seconds at that price.
    """
    best: Choice | None = None
    least_bytes, priced = light.choice.load_bytes, None
    start = movement.fastest = movement.solve(0.0, 1.0)
    if start is None or start.open_seconds > movement.latency or light.open_seconds <= movement.latency:
        return best, least_bytes, priced
    fast, slow = start, light
    while True:
        if movement.within(fast.choice) and fast.choice.load_bytes < (best or known).load_bytes - _HALF_BYTE:
            best = fast.choice
        seconds = slow.open_seconds - fast.open_seconds
        if seconds <= 0 or fast.choice.load_bytes <= slow.choice.load_bytes:
            return best, least_bytes, priced
        price = (fast.choice.load_bytes - slow.choice.load_bytes) / seconds
        middle = movement.solve(1.0, price)
        if middle is None:
            return best, least_bytes, priced
        total = middle.choice.load_bytes + price * middle.open_seconds
        least_bytes = max(least_bytes, total - price * movement.latency)
        priced = (price, middle)
        if total >= (fast.choice.load_bytes + price * fast.open_seconds) * (1 - _ROUNDING):
            if (
                movement.within(middle.choice)
                and middle.choice.load_bytes < (best or known).load_bytes - _HALF_BYTE
            ):
                best = middle.choice
            return best, least_bytes, priced
        if middle.open_seconds <= movement.latency:
            fast = middle
        else:
            slow = middle


def _by_labels(
    movement: _Movement,
    light: _Found,
    priced: tuple[float, _Found] | None,
    between: tuple[float, float],
) -> Choice | None:
    """The lightest plan that loads fewer bytes than the upper of two bounds, by labels; None where there is none.

    How many labels there are depends on the most bytes that are of interest. So where they are many, lower limits
    are tried first: a plan found below one of them is the lightest, and none found is soon told.

    Raises:
        SearchTooLargeError: More labels than allowed.
    """
    problem, windows = movement.problem, movement.windows
    seconds_table = movement.fastest.table if movement.fastest is not None else None
    if seconds_table is None:
        seconds_table = problem.subsets_for(movement.hops).table(problem.seconds, windows, movement.hops)
    free = movement.hops.scaled(0.0)
    load_table = light.table
    if load_table is None:
        load_table = problem.subsets_for(movement.hops).table(problem.loads, windows, free)
    sum_table = None
    if priced is not None:
        sum_table = priced[1].table
        if sum_table is None:
            subsets = problem.subsets_for(movement.hops)
            sum_table = subsets.table(priced[1].cost, windows, priced[1].hops)

    labels = problem.label_search(movement.hops)

    def search(limit: float, label_limit: int) -> Choice | None:
        criteria = [
            Criterion(problem.loads, free, limit, load_table),
            Criterion(problem.seconds, movement.hops, movement.latency, seconds_table),
            *problem.host_criteria,
        ]
        combined = None
        if priced is not None and sum_table is not None:
            price, found = priced
            combined = Combined((1.0, price), found.hops, limit + price * movement.latency, sum_table)
        best = labels.solve(criteria, windows, combined, label_limit=label_limit)
        return None if best is None else problem.choice(best[1])

    least, most = between[0], between[1] - _HALF_BYTE
    try:
        return search(most, _FEW_LABELS)
    except SearchTooLargeError:
        for share in _SHARES:
            found = search(least + share * (most - least), _MOST_LABELS)
            if found is not None:
                return found
        return search(most, _MOST_LABELS)
