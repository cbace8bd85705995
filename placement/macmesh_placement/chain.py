"""The search over a fixed order of nodes, for more of them than can be permuted, and the order itself."""

import numpy as np

from macmesh_placement.hops import Hops
from macmesh_placement.search import Path, Shape
from macmesh_placement.tables import Additive, Floats, Integers
from macmesh_placement.windows import Windows

#: Most nodes whose walk is improved by reversing parts of it.
_MOST_REVERSED = 128


def link_order(hops: Hops, head: int | None, tail: int | None) -> list[int]:
    """A walk over all nodes along their cheapest hops, from the head to the tail where they are pinned.

    Greedy: from the node with the fewest cheapest links, which is an end where the links form a line, always to
    the cheapest next, ties in the given order; then parts of the walk are reversed while that shortens it
    (2-opt). Equal hops keep the given order.

    Args:
        hops: The hops; each node of its own class, or all of one.
        head: First of the walk; None for any.
        tail: Last of the walk; None for any.
    """
    count = len(hops.classes)
    ends = [node for node in (head, tail) if node is not None]
    inner = [node for node in range(count) if node not in ends]
    if hops.class_count == 1:
        walk = inner
    else:
        costs = hops.forward.copy()
        np.fill_diagonal(costs, np.inf)
        walk = _improved(_greedy(costs, inner, head), costs)
    return [*([] if head is None else [head]), *walk, *([] if tail is None or tail == head else [tail])]


def _greedy(costs: Floats, nodes: list[int], head: int | None) -> list[int]:
    if not nodes:
        return []
    if head is None:
        cheapest = (costs[np.ix_(nodes, nodes)] <= costs.min()).sum(axis=1)
        fewest = np.where(cheapest == 0, len(nodes) + 1, cheapest)
        at = nodes[int(fewest.argmin())]
    else:
        at = nodes[int(costs[head, nodes].argmin())]
    left = np.zeros(len(costs), dtype=bool)
    left[nodes] = True
    walk = [at]
    left[at] = False
    for _ in range(len(nodes) - 1):
        at = int(np.where(left, costs[at], np.inf).argmin())
        walk.append(at)
        left[at] = False
    return walk


def _improved(walk: list[int], costs: Floats) -> list[int]:
    if len(walk) > _MOST_REVERSED:
        return walk
    order = np.array(walk)
    improved = True
    while improved:
        improved = False
        for first in range(len(order) - 1):
            # Reverse order[first:last + 1]: the hops into its first and out of its last change.
            lasts = np.arange(first + 1, len(order))
            gain = np.zeros(len(lasts))
            if first > 0:
                before = order[first - 1]
                gain += costs[before, order[first]] - costs[before, order[lasts]]
            inside = lasts < len(order) - 1
            after = order[np.minimum(lasts + 1, len(order) - 1)]
            gain += np.where(inside, costs[order[lasts], after] - costs[order[first], after], 0.0)
            best = int(gain.argmax())
            if gain[best] > 1e-12:  # noqa: PLR2004  more than rounding
                last = int(lasts[best])
                order[first : last + 1] = order[first : last + 1][::-1].copy()
                improved = True
    return [int(node) for node in order]


class ChainSearch:
    """A fixed order of nodes; any may be left out but the required ones.

    With a forced number of stages, hops are counted at their mean: only how many there are is known.

    Args:
        shape: What the pipeline must look like; its head and tail are first and last of the order.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def solve(self, cost: Additive, windows: Windows, hops: Hops) -> Path | None:
        """See `Search.solve`; without a forced number, a single stage may come out."""
        cost = Additive(
            begin=np.where(self._shape.begins(cost.begin.shape[1]), cost.begin, np.inf), end=cost.end
        )
        if hops.class_count > 1 and not self._shape.stage_count:
            return self._by_last(cost, windows, hops.forward)
        real = hops.forward[np.isfinite(hops.forward)]
        hop = float(real.mean()) if len(real) else 0.0
        return self._by_count(Additive(begin=cost.begin + hop, end=cost.end), windows)

    def _by_last(self, cost: Additive, windows: Windows, forward: Floats) -> Path | None:
        """Dynamic programming over (last node, layers covered)."""
        nodes, count = cost.begin.shape
        best = np.full((nodes, count), np.inf)
        since = 0
        for node in range(nodes):
            sums = np.full(count, np.inf)
            if since < node:
                sums = (best[since:node] + forward[since:node, node][:, None]).min(axis=0)
            if not any(earlier < node for earlier in self._shape.required):
                sums[0] = 0.0
            sums = sums + cost.begin[node]
            best[node] = self._window_minima(windows, node, sums) + cost.end[node]
            if node in self._shape.required:
                since = node
        ends = best[since:, -1]
        if not len(ends) or not np.isfinite(ends.min()):
            return None
        return self._walk_by_last(best, since + int(ends.argmin()), cost, windows, forward)

    @staticmethod
    def _window_minima(windows: Windows, node: int, sums: Floats) -> Floats:
        return _row_minima(windows.low[node], sums)

    def _walk_by_last(
        self, best: Floats, node: int, cost: Additive, windows: Windows, forward: Floats
    ) -> Path:
        path: Path = []
        b = best.shape[1] - 1
        while True:
            since = max((r for r in self._shape.required if r < node), default=0)
            a0 = int(windows.low[node, b])
            sums = np.full((node - since + 1, b - a0), np.inf)
            sums[:-1] = best[since:node, a0:b] + forward[since:node, node][:, None]
            if a0 == 0 and not any(earlier < node for earlier in self._shape.required):
                sums[-1, 0] = 0.0
            sums += cost.begin[node, a0:b]
            row, at = divmod(int(sums.argmin()), b - a0)
            path.append((node, a0 + at, b))
            if row == node - since:
                return path[::-1]
            node, b = since + row, a0 + at

    def _by_count(self, cost: Additive, windows: Windows) -> Path | None:
        """Dynamic programming over (number of stages where forced, layers covered)."""
        forced = self._shape.stage_count
        nodes, count = cost.begin.shape
        rows = forced + 1 if forced else 1
        best = np.full((rows, count), np.inf)
        best[0, 0] = 0.0
        history = np.empty((nodes + 1, rows, count))
        history[0] = best
        for node in range(nodes):
            source = best[:-1] if forced else best
            made = _row_minima(windows.low[node], source + cost.begin[node]) + cost.end[node]
            skipped = np.full_like(best, np.inf) if node in self._shape.required else best
            best = skipped.copy()
            target = best[1:] if forced else best
            np.minimum(target, made, out=target)
            history[node + 1] = best
        if not np.isfinite(best[-1, -1]):
            return None
        return self._walk_by_count(history, cost, windows)

    def _walk_by_count(self, history: Floats, cost: Additive, windows: Windows) -> Path:
        path: Path = []
        b, row = history.shape[2] - 1, history.shape[1] - 1
        for node in reversed(range(len(cost.begin))):
            if b == 0:
                break
            if node not in self._shape.required and history[node, row, b] == history[node + 1, row, b]:
                continue
            a0 = int(windows.low[node, b])
            source = row - 1 if self._shape.stage_count else row
            sums = history[node, source, a0:b] + cost.begin[node, a0:b]
            a = a0 + int(sums.argmin())
            path.append((node, a, b))
            b, row = a, source
        return path[::-1]


def _row_minima(low: Integers, values: Floats) -> Floats:
    """The minima of ``values`` [..., boundaries] over the windows low[b] <= a < b."""
    found: Floats = Windows(low[None, :]).minima(values, np.zeros(values.shape[:-1], dtype=np.int64))
    return found
