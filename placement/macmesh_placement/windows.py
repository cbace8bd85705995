"""Minima over the windows ``low[node, b] <= a < b``, for every end b at once.

A sparse table of minima over spans of 1, 2, 4, ... answers each window by two look-ups: O(boundaries x log
boundaries) for a row instead of O(boundaries^2).
"""

from itertools import pairwise

import numpy as np

from macmesh_placement.tables import Floats, Integers

#: Look-ups that are kept for the next minimum over rows of the same nodes: 8 bytes each.
_MOST_KEPT = 1_000_000


class Windows:
    """The windows in which stages may begin.

    Args:
        low: [nodes, boundaries]; the lowest begin of a stage for each end, the end itself where none fits.

    Attributes:
        low: As given.
    """

    def __init__(self, low: Integers) -> None:
        self.low = low
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
        self._kept: dict[int, tuple[Integers, Integers, Integers]] = {}

    def minima(self, values: Floats, members: Integers) -> Floats:
        """The minima of ``values`` [..., boundaries], each row in its member's windows.

        Args:
            values: The rows.
            members: The node of each row. The look-ups are kept by the array's identity: hand in the same
                array for the same rows.
        """
        count = values.shape[-1]
        table = np.empty((self._depth, *values.shape))
        table[0] = values
        for below, level in pairwise(range(self._depth)):
            half = 1 << below
            table[level, ..., count - half :] = table[below, ..., count - half :]
            np.minimum(
                table[below, ..., : count - half],
                table[below, ..., half:],
                out=table[level, ..., : count - half],
            )
        left, right = self._lookups(values, members)
        flat = table.reshape(-1)
        found: Floats = np.minimum(flat[left], flat[right])
        found[self._empty[members]] = np.inf
        return found

    def _lookups(self, values: Floats, members: Integers) -> tuple[Integers, Integers]:
        kept = self._kept.get(id(members))
        if kept is not None and kept[0] is members:
            return kept[1:]
        count = values.shape[-1]
        rows = np.arange(values.size // count).reshape(*values.shape[:-1], 1) * count
        level_at = self._level[members] * values.size + rows
        made = (level_at + self._left[members], level_at + self._right[members])
        if values.size <= _MOST_KEPT:
            self._kept[id(members)] = (members, *made)
        return made
