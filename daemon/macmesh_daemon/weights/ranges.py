"""Sets of bytes of a file. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class RangeSet:
    """Bytes of one file, kept as ascending ranges that neither touch nor overlap."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []
        for begin, end in ranges:
            self.add(begin, end)

    def add(self, begin: int, end: int) -> None:
        """Take bytes ``begin`` to ``end - 1`` in; an empty range adds nothing."""
        if begin >= end:
            return
        first = bisect_left(self._ends, begin)
        last = bisect_right(self._begins, end)
        if first < last:
            begin = min(begin, self._begins[first])
            end = max(end, self._ends[last - 1])
        self._begins[first:last] = [begin]
        self._ends[first:last] = [end]

    def covers(self, begin: int, end: int) -> bool:
        """Whether every byte of the range is in; an empty range is always."""
        if begin >= end:
            return True
        index = bisect_right(self._begins, begin) - 1
        return index >= 0 and self._ends[index] >= end

    @property
    def size_bytes(self) -> int:
        """Bytes in the set."""
        return sum(self._ends) - sum(self._begins)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._begins, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._begins)
