"""Exact search for the cheapest pipeline under an additive cost.

The searches answer the same question: which ordered nodes, and which contiguous ranges, cover the model at the
least cost of stages and hops, where each stage's begin lies in a window ``low[node, end] <= begin < end``?
`SubsetSearch` tries every subset in every order by dynamic programming over (set of nodes used, link class of
the last one, layers covered), in the manner of Held and Karp (J. SIAM 10(1), 1962);
`macmesh_placement.chain.ChainSearch` keeps the given order and only leaves nodes out.

A stage's cost is ``begin[node, a] + end[node, b]``, so the best begin for each end is a minimum over a
window; see `macmesh_placement.windows`.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import numpy.typing as npt

from macmesh_placement.hops import Hops
from macmesh_placement.tables import Additive, Floats, Integers
from macmesh_placement.windows import Windows

Path = list[tuple[int, int, int]]
"""Stages from head to tail: (node, begin boundary, end boundary)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a pipeline of at least two stages must look like.

    Attributes:
        node_count: Number of nodes.
        stage_count: Exact number of stages; 0 for any from two on.
        required: Nodes that must hold a stage; head and tail are among them where they are pinned.
        head: The node of the first stage; None for any.
        tail: The node of the last stage; None for any.
    """

    node_count: int
    stage_count: int = 0
    required: frozenset[int] = frozenset()
    head: int | None = None
    tail: int | None = None

    @property
    def required_mask(self) -> int:
        """The required nodes as bits."""
        return sum(1 << node for node in self.required)

    @property
    def free(self) -> bool:
        """Nothing is forced or pinned."""
        return not self.required and not self.stage_count

    def begins(self, boundary_count: int) -> npt.NDArray[np.bool_]:
        """[nodes, boundaries]: where each node's stage may begin, as far as the head's pin goes."""
        allowed = np.ones((self.node_count, boundary_count), dtype=bool)
        if self.head is not None:
            allowed[:, 0] = False
            allowed[self.head] = False
            allowed[self.head, 0] = True
        return allowed

    def ends(self, low: Integers) -> Integers:
        """``low`` with the ends taken out that the tail's pin bars."""
        if self.tail is None:
            return low
        last = low.shape[1] - 1
        barred = low.copy()
        barred[:, last] = last
        barred[self.tail] = np.arange(last + 1)
        barred[self.tail, last] = low[self.tail, last]
        return barred


class Search(Protocol):
    """Finds the cheapest pipeline of a shape."""

    def solve(self, cost: Additive, windows: Windows, hops: Hops) -> Path | None:
        """The cheapest path, the token's way back aside; None where no pipeline fits.

        Args:
            cost: What a stage costs.
            windows: Where stages may begin.
            hops: What hops cost; infinite where barred.
        """
        ...


class SubsetSearch:
    """Every subset of up to a dozen nodes, in every order.

    Args:
        shape: What the pipeline must look like.
        classes: [nodes]; the link class of each node.
        head_class: The link class that the first stage's node must be of; None: as the shape says.
        allowed: The sets of nodes, as bits, that may make a whole pipeline; None: any.
    """

    def __init__(
        self,
        shape: Shape,
        classes: Integers,
        *,
        head_class: int | None = None,
        allowed: Integers | None = None,
    ) -> None:
        self.shape = shape
        self.allowed = allowed
        self._head_class = head_class
        self._classes = classes
        self._class_count = int(classes.max(initial=0)) + 1
        count = shape.node_count
        self.deepest = min(shape.stage_count or count, count)
        self._levels: list[tuple[Integers, Integers, Integers, Integers]] = []
        self._others: list[Integers] = []
        for size in range(1, self.deepest + 1):
            sets = [
                chosen
                for chosen in combinations(range(count), size)
                if head_class is None or any(classes[node] == head_class for node in chosen)
            ]
            members = np.array(sets, dtype=np.int64).reshape(-1, size)
            masks = (1 << members).sum(axis=1)
            self._levels.append((masks, members, masks[:, None] ^ (1 << members), classes[members]))
            places = np.array([[i for i in range(size) if i != left] for left in range(size)], dtype=np.int64)
            self._others.append(classes[members][:, places.reshape(size, size - 1)])
        self.set_count = 1 << count
        self._complete = self._whole_sets()

    def table(self, cost: Additive, windows: Windows, hops: Hops) -> Floats:
        """The least cost of every beginning of a pipeline.

        Returns:
            [sets of nodes as bits, classes, boundaries]; entry [s, c, b] is the least cost of covering the
            layers up to boundary b with exactly the nodes of s, the last of which is of class c.
        """
        count = cost.begin.shape[1]
        allowed = self.shape.begins(count)
        if self._head_class is not None:
            allowed[self._classes != self._head_class, 0] = False
        begin = np.where(allowed, cost.begin, np.inf)
        best = np.full((self.set_count, self._class_count, count), np.inf)
        for size, (masks, members, previous, kinds) in enumerate(self._levels, start=1):
            if size == 1:
                sums = np.full((*members.shape, count), np.inf)
                sums[..., 0] = 0.0
            elif self._class_count == 1:
                sums = best[previous, 0] + hops.forward[0, 0]
            elif self._class_count == self.shape.node_count:
                before = self._others[size - 1]
                step = hops.forward[before, kinds[..., None]]
                sums = (best[previous[..., None], before] + step[..., None]).min(axis=2)
            else:
                sums = (best[previous] + hops.forward.T[kinds][..., None]).min(axis=2)
            made = windows.minima(sums + begin[members], members) + cost.end[members]
            if self._class_count == 1:
                best[masks, 0] = made.min(axis=1)
            elif self._class_count == self.shape.node_count:
                best[masks[:, None], kinds] = made
            else:
                for kind in range(self._class_count):
                    mine = np.where((kinds == kind)[..., None], made, np.inf)
                    best[masks, kind] = mine.min(axis=1)
        return best

    def complete(self) -> Integers:
        """The sets of nodes that make a whole pipeline of the shape."""
        return self._complete

    def _whole_sets(self) -> Integers:
        wanted = self.shape.required_mask
        sizes = [self.shape.stage_count] if self.shape.stage_count else range(2, self.deepest + 1)
        found = [self._levels[size - 1][0] for size in sizes if size <= self.deepest]
        masks = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
        chosen: Integers = masks[masks & wanted == wanted]
        if self.allowed is None:
            return chosen
        may = np.zeros(self.set_count, dtype=bool)
        may[self.allowed] = True
        return chosen[may[chosen]]

    def solve(self, cost: Additive, windows: Windows, hops: Hops) -> Path | None:
        """See `Search.solve`."""
        return self.best_path(self.table(cost, windows, hops), cost, windows, hops)

    def best_path(self, table: Floats, cost: Additive, windows: Windows, hops: Hops) -> Path | None:
        """The cheapest whole pipeline of a table; None where there is none."""
        masks = self.complete()
        if not len(masks):
            return None
        ends = table[masks, :, -1]
        mask, kind = divmod(int(ends.argmin()), self._class_count)
        if not np.isfinite(ends[mask, kind]):
            return None
        return self._walk(table, (int(masks[mask]), kind), cost, windows, hops)

    def closed_path(
        self, table: Floats, cost: Additive, windows: Windows, hops: Hops
    ) -> tuple[float, Path] | None:
        """The cheapest whole pipeline, the way back to the head's class included, with its cost."""
        if self._head_class is None:
            raise ValueError("the way back needs the class of the head")
        masks = self.complete()
        if not len(masks):
            return None
        ends = table[masks, :, -1] + hops.back[:, self._head_class]
        mask, kind = divmod(int(ends.argmin()), self._class_count)
        if not np.isfinite(ends[mask, kind]):
            return None
        path = self._walk(table, (int(masks[mask]), kind), cost, windows, hops)
        return float(ends[mask, kind]), path

    def _walk(
        self, table: Floats, state: tuple[int, int], cost: Additive, windows: Windows, hops: Hops
    ) -> Path:
        path: Path = []
        mask, kind = state
        allowed = self.shape.begins(table.shape[2])
        if self._head_class is not None:
            allowed[self._classes != self._head_class, 0] = False
        b = table.shape[2] - 1
        while mask:
            for node in (i for i in range(mask.bit_length()) if mask >> i & 1 and self._classes[i] == kind):
                a0 = int(windows.low[node, b])
                if a0 >= b:
                    continue
                rest = mask ^ (1 << node)
                if rest:
                    before = table[rest, :, a0:b] + hops.forward[:, kind][:, None]
                    sums = before.min(axis=0) + np.where(allowed[node], cost.begin[node], np.inf)[a0:b]
                else:
                    sums = np.full(b - a0, np.inf)
                    if a0 == 0 and allowed[node, 0]:
                        sums[0] = cost.begin[node, 0]
                if float(sums.min() + cost.end[node, b]) == table[mask, kind, b]:
                    a = a0 + int(sums.argmin())
                    path.append((node, a, b))
                    if rest:
                        kind = int(before[:, a - a0].argmin())
                    mask, b = rest, a
                    break
            else:  # pragma: no cover  the same sums were made on the way up
                raise AssertionError("the search lost its own path")
        return path[::-1]
