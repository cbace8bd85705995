"""Percentiles of what was measured. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def nearest_rank(values: Sequence[float], percent: float) -> float:
    """The percentile by nearest rank: the smallest value that at least `percent` % of all do not exceed.

    It is always one of the values, never something between two.

    Raises:
        ValueError: there are no values, or `percent` lies outside 0 (excluded) to 100.
    """
    if not values or not 0 < percent <= 100:  # noqa: PLR2004  percent
        raise ValueError(f"no {percent}th percentile of {len(values)} values")
    # Whole numbers where they can be: 0.95 * 20 is more than 19 in floating point.
    rank = math.ceil(round(percent * len(values), 6) / 100)
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True)
class Spread:
    """How measured values are spread.

    Attributes:
        count: How many there are; 0 where nothing was measured, and then the rest is 0 too.
        p50: Median, by nearest rank.
        p95: 95th percentile.
        p99: 99th percentile.
        largest: The largest.
    """

    count: int = 0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of some values."""
        found = sorted(values)
        if not found:
            return cls()
        return cls(
            len(found),
            nearest_rank(found, 50),
            nearest_rank(found, 95),
            nearest_rank(found, 99),
            found[-1],
        )
