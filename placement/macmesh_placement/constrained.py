"""Exact search for the cheapest pipeline when stages also use up shared resources.

Three things couple the stages of a plan beyond "each node once": the RAM of a machine that runs several nodes,
a bound on one cost while another is minimised, and the token's way back, which joins the last stage to the
first. Each is a *criterion*: a plan uses some of it and must stay within its limit.

Labels are ends of pipelines (from some boundary to the last layer), one level per number of stages, kept as
arrays. A label is dropped when another of the same nodes, first and last link class and boundary is no worse
in every criterion, or when the least that any beginning could add - known from `SubsetSearch.table` - takes it
past a limit. So nothing is lost: what comes out is the optimum, or the search says that it is too large.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from macmesh_placement.hops import Hops
from macmesh_placement.labels import Labels, all_within, joined, path_of, undominated
from macmesh_placement.search import Path, Shape, SubsetSearch
from macmesh_placement.tables import Additive, Floats, Integers
from macmesh_placement.windows import Windows

#: Most ways to split the allowed sets of nodes in two that are looked at one by one.
_MOST_SPLITS = 10_000


class SearchTooLargeError(Exception):
    """More labels than the search may make; the caller falls back and says so in the certificate."""


@dataclass(frozen=True, slots=True)
class Resource:
    """The RAM of one machine.

    Attributes:
        use: [nodes, boundaries, boundaries]; what the stage of a node from a to b uses.
        limit: The most that one plan may use.
    """

    use: Floats
    limit: float


@dataclass(frozen=True, slots=True)
class Criterion:
    """A cost of stages and hops, and the most that a plan may cost.

    Attributes:
        cost: Of stages; additive, or [nodes, boundaries, boundaries].
        hops: Of hops; None: free.
        limit: The most, inclusive.
        table: `SubsetSearch.table` of it; None: nothing is known of what beginnings add.
    """

    cost: Additive | Floats
    hops: Hops | None
    limit: float
    table: Floats | None = None


@dataclass(frozen=True, slots=True)
class Combined:
    """A weighted sum of the first criteria: the table of the sum bounds better than the sum of the tables.

    Attributes:
        weights: Weight of each criterion, from the first.
        hops: Its hops.
        limit: The weighted sum of the limits.
        table: Its table.
    """

    weights: tuple[float, ...]
    hops: Hops
    limit: float
    table: Floats


@dataclass(frozen=True, slots=True)
class _Bound:
    """What the cheapest beginnings add, by (nodes used, class that follows, boundary)."""

    weights: Floats
    ahead: Floats
    back: Floats
    limit: float


class LabelSearch:
    """As `SubsetSearch`, within criteria; the first is minimised.

    Args:
        subsets: The search whose shape it shares; not one of a fixed head.
        classes: [nodes]; link class of each node.
    """

    def __init__(self, subsets: SubsetSearch, classes: Integers) -> None:
        self._subsets = subsets
        self._shape: Shape = subsets.shape
        self._classes = classes
        self._ahead: dict[tuple[int, int], tuple[Floats, Hops | None, Floats]] = {}

    def solve(
        self,
        criteria: list[Criterion],
        windows: Windows,
        combined: Combined | None = None,
        *,
        label_limit: int,
    ) -> tuple[float, Path] | None:
        """The least of the first criterion within all limits, with its path; None where nothing is.

        Args:
            criteria: What a plan uses; hand in the same tables again and what is worked out of them is kept.
            windows: Where stages may begin.
            combined: A weighted sum of the criteria with a table of its own.
            label_limit: Most labels to make.

        Raises:
            SearchTooLargeError: More labels than allowed.
        """
        last = windows.low.shape[1] - 1
        limits = np.array([criterion.limit for criterion in criteria])
        none = np.full(1, -1, dtype=np.int64)
        labels = Labels(
            np.zeros(1, dtype=np.int64),
            none,
            none,
            np.full(1, last),
            np.zeros((len(criteria), 1)),
            none,
            none,
        )
        levels = [labels]
        best: tuple[float, int, int] | None = None
        made = 0
        bounds: list[_Bound] = []
        for size in range(1, self._subsets.deepest + 1):
            if not levels[-1].count:
                break
            if not bounds or self._shape.stage_count:
                bounds = self._bounds(criteria, combined, size)
            grown = []
            for node in range(self._shape.node_count):
                longer, count = self._grown(levels[-1], node, criteria, windows, label_limit - made)
                made += count
                if longer.count:
                    longer = longer.chosen(all_within(longer.values, limits))
                    grown.append(longer.chosen(self._promising(longer, bounds)))
            level = joined(grown, len(criteria))
            whole = self._whole(level, criteria, size)
            if len(whole[0]) and (best is None or whole[1].min() < best[0]):
                at = int(whole[1].argmin())
                best = (float(whole[1][at]), size, int(whole[0][at]))
                limits[0] = min(limits[0], np.nextafter(best[0], -np.inf))
            keep = np.ones(level.count, dtype=bool)
            keep[whole[0]] = False
            keep &= level.begin > 0
            # Parents are places in the level as it is kept: whole pipelines stay at the front.
            order = np.concatenate([whole[0], np.flatnonzero(keep)[undominated(level.chosen(keep))]])
            levels.append(level.chosen(order))
            if best is not None and best[1] == size:
                best = (best[0], size, int(np.flatnonzero(order == best[2])[0]))
        return None if best is None else (best[0], path_of(levels, best[1], best[2]))

    def _grown(
        self, labels: Labels, node: int, criteria: list[Criterion], windows: Windows, left: int
    ) -> tuple[Labels, int]:
        """All labels with a stage of the node before them."""
        low = windows.low[node]
        is_tail = bool(labels.first[0] < 0)
        able = (labels.mask >> node & 1 == 0) & (low[labels.begin] < labels.begin)
        able &= labels.begin > 0
        at = np.flatnonzero(able)
        ends = labels.begin[at]
        counts = ends - low[ends]
        total = int(counts.sum())
        if total > left:
            raise SearchTooLargeError
        rows = np.repeat(at, counts)
        firsts = np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.arange(total) - firsts + np.repeat(low[ends], counts)
        if self._shape.head is not None:
            fine = (begins == 0) == (node == self._shape.head)
            rows, begins = rows[fine], begins[fine]
        ends = labels.begin[rows]
        kind = int(self._classes[node])
        values = labels.values[:, rows]
        for row, criterion in enumerate(criteria):
            if isinstance(criterion.cost, Additive):
                values[row] += criterion.cost.begin[node, begins] + criterion.cost.end[node, ends]
            else:
                values[row] += criterion.cost[node, begins, ends]
            if criterion.hops is not None and not is_tail:
                values[row] += criterion.hops.forward[kind, labels.first[rows]]
        tail = np.full(len(rows), kind, dtype=np.int64) if is_tail else labels.tail[rows]
        return (
            Labels(
                labels.mask[rows] | 1 << node,
                np.full(len(rows), kind, dtype=np.int64),
                tail,
                begins,
                values,
                rows,
                np.full(len(rows), node, dtype=np.int64),
            ),
            total,
        )

    def _bounds(self, criteria: list[Criterion], combined: Combined | None, size: int) -> list[_Bound]:
        """The bounds for labels of that many stages."""
        bounds = []
        for row, criterion in enumerate(criteria):
            if criterion.table is not None:
                weights = np.zeros(len(criteria))
                weights[row] = 1.0
                bounds.append(self._bound(weights, criterion.table, criterion.hops, criterion.limit, size))
        if combined is not None:
            weights = np.zeros(len(criteria))
            weights[: len(combined.weights)] = combined.weights
            bounds.append(self._bound(weights, combined.table, combined.hops, combined.limit, size))
        return bounds

    def _bound(self, weights: Floats, table: Floats, hops: Hops | None, limit: float, size: int) -> _Bound:
        kinds = table.shape[1]
        back = np.zeros(kinds)
        if hops is not None:
            back = hops.back.min(axis=1) if kinds > 1 else np.full(1, hops.least_back)
        key = id(table), size if self._shape.stage_count else 0
        kept = self._ahead.get(key)
        if kept is None or kept[0] is not table or kept[1] is not hops:
            kept = self._ahead[key] = (table, hops, self._ahead_of(table, hops, size))
        return _Bound(weights, kept[2], back, limit * (1 + 1e-12))

    def _ahead_of(self, table: Floats, hops: Hops | None, size: int) -> Floats:
        """[sets used, classes, boundaries]: the least that beginnings and the hop to what follows cost."""
        kinds = table.shape[1]
        if hops is None or not hops.forward.any():
            least = self._least_ahead(table.min(axis=1, keepdims=True), size)
            free: Floats = np.broadcast_to(least, (len(least), kinds, least.shape[2]))
            return free
        least = self._least_ahead(table, size)
        return np.stack(
            [(least + hops.forward[:, kind][:, None]).min(axis=1) for kind in range(kinds)], axis=1
        )

    def _least_ahead(self, table: Floats, size: int) -> Floats:
        """By the nodes used: the least of the table over the sets of other nodes that may come before."""
        shape, sets = self._shape, np.arange(len(table))
        allowed = self._subsets.allowed
        if allowed is not None and sum(1 << int(mask).bit_count() for mask in allowed) <= _MOST_SPLITS:
            least = np.full_like(table, np.inf)
            for whole in self._subsets.complete():
                used = sets[sets & whole == sets]
                least[used] = np.minimum(least[used], table[used ^ whole])
            return least
        if shape.stage_count:
            sizes = np.array([int(mask).bit_count() for mask in sets])
            least = np.where((sizes == shape.stage_count - size)[:, None, None], table, np.inf)
        else:
            least = table.copy()
        for node in range(shape.node_count):
            if node not in shape.required:
                split = least.reshape(-1, 2, 1 << node, *least.shape[1:])
                np.minimum(split[:, 1], split[:, 0], out=split[:, 1])
        return least[::-1]

    def _promising(self, labels: Labels, bounds: list[_Bound]) -> npt.NDArray[np.bool_]:
        """Whole pipelines, and labels whose cheapest beginnings stay within the limits."""
        whole = labels.begin == 0
        keep = np.ones(labels.count, dtype=bool)
        for bound in bounds:
            ahead = bound.ahead[labels.mask, labels.first, labels.begin] + bound.back[labels.tail]
            keep &= bound.weights @ labels.values + ahead <= bound.limit
        keep |= whole
        return keep

    def _whole(self, level: Labels, criteria: list[Criterion], size: int) -> tuple[Integers, Floats]:
        """Whole pipelines of the shape within the limits: their places and what they cost."""
        shape = self._shape
        none = (np.zeros(0, dtype=np.int64), np.zeros(0))
        if size < 2 or shape.stage_count not in {0, size}:  # noqa: PLR2004  a pipeline has two stages at least
            return none
        wanted = shape.required_mask
        good = (level.begin == 0) & (level.mask & wanted == wanted)
        if self._subsets.allowed is not None:
            may = np.zeros(self._subsets.set_count, dtype=bool)
            may[self._subsets.allowed] = True
            good &= may[level.mask]
        at = np.flatnonzero(good)
        if not len(at):
            return none
        values = level.values[:, at]
        for row, criterion in enumerate(criteria):
            if criterion.hops is not None:
                values[row] += criterion.hops.back[level.tail[at], level.first[at]]
        limits = np.array([criterion.limit for criterion in criteria])
        fine = all_within(values, limits) & np.isfinite(values[0])
        return at[fine], values[0, fine]
