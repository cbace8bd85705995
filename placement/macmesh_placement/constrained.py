"""Exact search for the cheapest pipeline when stages also use up shared resources.

Two things couple the stages of a plan beyond "each node once": the RAM of a machine that runs several nodes,
and a bound on one cost while another is minimised. Both are resources: a stage uses some of them, a plan must
stay within their limits. Labels (cost, use of each resource) are kept per (set of nodes, layers covered); a
label that another beats in every respect is dropped, and so is one that cannot be completed within the
limits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from macmesh_placement.search import Path
from macmesh_placement.tables import Additive, Floats, Integers


class SearchTooLargeError(Exception):
    """More labels than the search may keep; the caller falls back and says so in the certificate."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that stages use up.

    Attributes:
        use: [nodes, boundaries, boundaries]; what the stage of a node from a to b uses.
        limit: The most that one plan may use.
    """

    use: Floats
    limit: float


@dataclass(frozen=True, slots=True)
class _Label:
    cost: float
    used: tuple[float, ...]
    node: int
    begin: int
    parent: "_Label | None"


_Level = dict[tuple[int, int], list[_Label]]
"""Labels by nodes used (a bit mask) and boundary reached."""


class ConstrainedSearch:
    """As `SubsetSearch`, within resources.

    Args:
        node_count: Number of nodes.
        stage_count: Exact number of stages; 0 for any from two on.
        resources: What the plan may use up.
        cost_limit: Plans that cost more are of no interest.
        label_limit: Most labels to make.
    """

    def __init__(
        self,
        node_count: int,
        stage_count: int,
        resources: list[Resource],
        *,
        cost_limit: float = np.inf,
        label_limit: int = 200_000,
    ) -> None:
        self._node_count = node_count
        self._stage_count = stage_count
        self._resources = resources
        self._cost_limit = cost_limit
        self._label_limit = label_limit

    def solve(self, cost: Additive, low: Integers) -> Path | None:
        """See `Search.solve`.

        Raises:
            SearchTooLargeError: More labels than allowed.
        """
        last = low.shape[1] - 1
        ends = _reachable_ends(low)
        to_go = [_least_to_go(resource.use, low) for resource in self._resources]
        matrices = np.stack([cost.matrix(node) for node in range(self._node_count)])
        cost_to_go = _least_to_go(matrices, low)
        level: _Level = {(0, 0): [_Label(0.0, (0.0,) * len(self._resources), -1, 0, None)]}
        complete: list[_Label] = []
        made = 0
        for size in range(1, (self._stage_count or self._node_count) + 1):
            following: _Level = {}
            for mask, node, a, b in self._moves(level, ends):
                for label in level[mask, a]:
                    extended = self._extend(label, node, a, b, cost, to_go)
                    if extended is not None and extended.cost + cost_to_go[b] <= self._cost_limit:
                        _insert(following.setdefault((mask | 1 << node, b), []), extended)
                        made += 1
                if made > self._label_limit:
                    raise SearchTooLargeError
            if size == self._stage_count or (self._stage_count == 0 and size > 1):
                complete += [label for (_, b), labels in following.items() if b == last for label in labels]
            level = following
        best = min(complete, key=lambda label: label.cost, default=None)
        return None if best is None else _walk(best, last)

    def _moves(self, level: _Level, ends: list[list[list[int]]]) -> Iterator[tuple[int, int, int, int]]:
        """The stages that could follow: (nodes used so far, node, begin, end)."""
        for mask, a in level:
            for node in range(self._node_count):
                if not mask >> node & 1:
                    for b in ends[node][a]:
                        yield mask, node, a, b

    def _extend(
        self, label: _Label, node: int, a: int, b: int, cost: Additive, to_go: list[Floats]
    ) -> _Label | None:
        used = []
        for resource, before, rest in zip(self._resources, label.used, to_go, strict=True):
            after = before + float(resource.use[node, a, b])
            if after + rest[b] > resource.limit:
                return None
            used.append(after)
        return _Label(label.cost + cost.of(node, a, b), tuple(used), node, a, label)


def _reachable_ends(low: Integers) -> list[list[list[int]]]:
    """For each node and begin a, the ends b with low[node, b] <= a < b."""
    count = low.shape[1]
    return [[(np.flatnonzero(row[a + 1 :] <= a) + a + 1).tolist() for a in range(count)] for row in low]


def _least_to_go(use: Floats, low: Integers) -> Floats:
    """The least that any stages use from each boundary to the end, were a node free to serve twice."""
    nodes, count = low.shape
    fits = np.arange(count)[None, :, None] >= low[:, None, :]
    fits &= np.arange(count)[None, :, None] < np.arange(count)[None, None, :]
    cheapest = np.where(fits, use, np.inf).min(axis=0) if nodes else np.full((count, count), np.inf)
    least = np.full(count, np.inf)
    least[-1] = 0.0
    for a in range(count - 2, -1, -1):
        least[a] = (cheapest[a, a + 1 :] + least[a + 1 :]).min()
    return least


def _insert(labels: list[_Label], new: _Label) -> None:
    """Adds the label unless another beats it in every respect; drops those that it beats."""
    for old in labels:
        if old.cost <= new.cost and all(x <= y for x, y in zip(old.used, new.used, strict=True)):
            return
    labels[:] = [
        old
        for old in labels
        if old.cost < new.cost or any(x < y for x, y in zip(old.used, new.used, strict=True))
    ]
    labels.append(new)


def _walk(label: _Label, end: int) -> Path:
    path: Path = []
    b = end
    current: _Label | None = label
    while current is not None and current.parent is not None:
        path.append((current.node, current.begin, b))
        b, current = current.begin, current.parent
    return path[::-1]
