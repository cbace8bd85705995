"""Whether any pipeline fits, costs aside: much cheaper than searching for the best one."""

from itertools import combinations

import numpy as np
import numpy.typing as npt

from macmesh_placement.search import Shape
from macmesh_placement.tables import Integers


class Reach:
    """Which layers sets of nodes can cover, over all subsets and orders.

    Args:
        shape: What the pipeline must look like.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        count = shape.node_count
        deepest = min(shape.stage_count or count, count)
        self._levels: list[tuple[Integers, Integers, Integers]] = []
        for size in range(1, deepest + 1):
            members = np.array(list(combinations(range(count), size)), dtype=np.int64).reshape(-1, size)
            masks = (1 << members).sum(axis=1)
            self._levels.append((masks, members, masks[:, None] ^ (1 << members)))

    def possible(self, low: Integers) -> bool:
        """Whether the windows ``low[node, end] <= begin < end`` allow a pipeline.

        Where nothing is forced or pinned, a single stage counts as one.
        """
        return self._furthest(low) if self._shape.free else self._exactly(low)

    def _furthest(self, low: Integers) -> bool:
        """With nodes free to be left out, only how far a set of nodes reaches matters.

        For a later begin no stage ends earlier, so that reaching further is never worse.
        """
        count = low.shape[1]
        ends = np.broadcast_to(np.arange(count), low.shape)
        furthest = np.broadcast_to(np.arange(count), low.shape).copy()
        for node in range(len(low)):
            np.maximum.at(furthest[node], low[node], ends[node])
        furthest = np.maximum.accumulate(furthest, axis=1)
        reached = np.zeros(1 << len(low), dtype=np.int64)
        for masks, members, previous in self._levels:
            reached[masks] = furthest[members, reached[previous]].max(axis=1)
        return bool((reached == count - 1).any())

    def _exactly(self, low: Integers) -> bool:
        """With a forced number of stages or pins: every boundary that exactly these nodes can reach."""
        count = low.shape[1]
        begins = self._shape.begins(count)
        reached: npt.NDArray[np.bool_] = np.zeros((1 << len(low), count), dtype=bool)
        reached[0, 0] = True
        columns = np.arange(count)
        wanted = self._shape.required_mask
        for size, (masks, members, previous) in enumerate(self._levels, start=1):
            sums = np.zeros((*members.shape, count + 1), dtype=np.int32)
            np.cumsum(reached[previous] & begins[members], axis=-1, out=sums[..., 1:], dtype=np.int32)
            before = np.take_along_axis(sums, np.minimum(low[members], columns), axis=-1)
            found = sums[..., :count] > before
            reached[masks] = found.any(axis=1)
            counts = size == self._shape.stage_count or (not self._shape.stage_count and size > 1)
            if counts and reached[masks[masks & wanted == wanted], -1].any():
                return True
        return False
