"""Exact search for the cheapest pipeline under an additive cost.

Both searches answer the same question: which ordered nodes, and which contiguous ranges, cover the model at
the least cost, where each stage's begin lies in a window ``low[node, end] <= begin < end``? `SubsetSearch`
tries every subset in every order by dynamic programming over (set of nodes used, layers covered);
`ChainSearch` keeps the given order and only leaves nodes out.

A stage's cost is ``begin[node, a] + end[node, b]``, so the best begin for each end is a minimum over a
window. A sparse table answers all of them at once: O(boundaries x log boundaries) per (set, node) instead of
O(boundaries^2).
"""

from itertools import combinations
from typing import Protocol

import numpy as np

from macmesh_placement.tables import Additive, Floats, Integers

Path = list[tuple[int, int, int]]
"""Stages from head to tail: (node, begin boundary, end boundary)."""


class Search(Protocol):
    """Finds the cheapest pipeline of at least two stages, or of exactly the forced number."""

    def solve(self, cost: Additive, low: Integers) -> Path | None:
        """The cheapest path, or None where no pipeline fits.

        Args:
            cost: What a stage costs.
            low: [nodes, boundaries]; the lowest begin of a stage for each end, the end itself where none
                fits.
        """
        ...


class SubsetSearch:
    """Every subset of up to a dozen nodes, in every order.

    Args:
        node_count: Number of nodes.
        stage_count: Exact number of stages; 0 for any from two on.
    """

    def __init__(self, node_count: int, stage_count: int) -> None:
        self._stage_count = stage_count
        deepest = min(stage_count or node_count, node_count)
        self._levels: list[tuple[Integers, Integers, Integers]] = []
        for size in range(1, deepest + 1):
            members = np.array(list(combinations(range(node_count), size)), dtype=np.int64)
            masks = (1 << members).sum(axis=1)
            self._levels.append((masks, members, masks[:, None] ^ (1 << members)))
        self._set_count = 1 << node_count

    def solve(self, cost: Additive, low: Integers) -> Path | None:
        """See `Search.solve`."""
        count = cost.begin.shape[1]
        best = np.full((self._set_count, count), np.inf)
        best[0, 0] = 0.0
        window = _Windows(low)
        final: list[tuple[float, int]] = []
        for size, (masks, members, previous) in enumerate(self._levels, start=1):
            sums = best[previous] + cost.begin[members]
            best[masks] = (window.minima(sums, members) + cost.end[members]).min(axis=1)
            if size == self._stage_count or (self._stage_count == 0 and size > 1):
                ends = best[masks, -1]
                winner = int(ends.argmin())
                final.append((float(ends[winner]), int(masks[winner])))
        value, mask = min(final, default=(np.inf, 0))
        return self._path(mask, best, cost, low) if np.isfinite(value) else None

    @staticmethod
    def _path(mask: int, best: Floats, cost: Additive, low: Integers) -> Path:
        path: Path = []
        b = best.shape[1] - 1
        while mask:
            for node in (index for index in range(mask.bit_length()) if mask >> index & 1):
                a0 = int(low[node, b])
                sums = best[mask ^ (1 << node), a0:b] + cost.begin[node, a0:b]
                if len(sums) and float(sums.min() + cost.end[node, b]) == best[mask, b]:
                    a = a0 + int(sums.argmin())
                    path.append((node, a, b))
                    mask, b = mask ^ (1 << node), a
                    break
            else:  # pragma: no cover  the same sums were made on the way up
                raise AssertionError("the search lost its own path")
        return path[::-1]


class ChainSearch:
    """A fixed order of nodes; any may be left out.

    Args:
        stage_count: Exact number of stages; 0 for any number.
    """

    def __init__(self, stage_count: int) -> None:
        self._stage_count = stage_count

    def solve(self, cost: Additive, low: Integers) -> Path | None:
        """See `Search.solve`; without a forced number, a single stage may come out."""
        nodes, count = cost.begin.shape
        rows = self._stage_count + 1 if self._stage_count else 1
        best = np.full((rows, count), np.inf)
        best[0, 0] = 0.0
        history = np.empty((nodes + 1, rows, count))
        history[0] = best
        for node in range(nodes):
            source = best[:-1] if self._stage_count else best
            window = _Windows(low[node : node + 1])
            members = np.zeros(len(source), dtype=np.int64)
            made = window.minima(source + cost.begin[node], members) + cost.end[node]
            target = best[1:] if self._stage_count else best
            best = best.copy()
            merged = np.minimum(target, made)
            if self._stage_count:
                best[1:] = merged
            else:
                best = merged
            history[node + 1] = best
        if not np.isfinite(best[-1, -1]):
            return None
        return self._path(history, cost, low)

    def _path(self, history: Floats, cost: Additive, low: Integers) -> Path:
        path: Path = []
        b, row = history.shape[2] - 1, history.shape[1] - 1
        for node in reversed(range(len(cost.begin))):
            if b == 0:
                break
            value = history[node + 1, row, b]
            if history[node, row, b] == value:
                continue
            a0 = int(low[node, b])
            source = row - 1 if self._stage_count else row
            sums = history[node, source, a0:b] + cost.begin[node, a0:b]
            a = a0 + int(sums.argmin())
            path.append((node, a, b))
            b, row = a, source
        return path[::-1]


class _Windows:
    """Minima over the windows low[node, b] <= a < b, for every b at once."""

    def __init__(self, low: Integers) -> None:
        count = low.shape[1]
        length = np.arange(count)[None, :] - low
        self._empty = length <= 0
        level = np.zeros_like(length)
        positive = np.maximum(length, 1)
        while True:
            longer = (2 << level) <= positive
            if not longer.any():
                break
            level = level + longer
        self._level = level
        self._left = np.where(self._empty, 0, low)
        self._right = np.where(self._empty, 0, np.arange(count)[None, :] - (1 << level))
        self._depth = int(level.max(initial=0)) + 1

    def minima(self, values: Floats, members: Integers) -> Floats:
        """The minima of ``values`` [..., boundaries], each row in its member's windows [...]."""
        count = values.shape[-1]
        table = np.empty((self._depth, *values.shape))
        table[0] = values
        for level in range(1, self._depth):
            half = 1 << (level - 1)
            table[level] = table[level - 1]
            np.minimum(
                table[level - 1, ..., : count - half],
                table[level - 1, ..., half:],
                out=table[level, ..., : count - half],
            )
        rows = np.arange(values.size // count).reshape(*values.shape[:-1], 1) * count
        level_at = self._level[members] * values.size
        flat = table.reshape(-1)
        found: Floats = np.minimum(
            flat[level_at + rows + self._left[members]], flat[level_at + rows + self._right[members]]
        )
        found[self._empty[members]] = np.inf
        return found
