"""The rows that a run prints."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Sizes of messages: a token, one decoded token's hidden state, and prefill chunks.
SIZES_BYTES = (8, 6 * 1024, 64 * 1024, 1024 * 1024, 12 * 1024 * 1024)


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Attributes:
        provider: ``shm``, ``tcp``, ``ring`` (MLX's own), ``socket`` or ``memcpy``.
        level: What was in the way: ``mlx`` (through `mx.distributed`), ``host`` (host transfers), ``link`` (the native
            link alone) or ``raw``.
        operation: ``send`` (one way; ``send_apart`` with a stream each way), ``message``, ``all_sum``, ``wait`` or
            ``copy``.
        ranks: Processes that took part.
        bytes: Of one message.
        p50_us: Median of the latency in microseconds; None where it was not measured.
        p99_us: Its 99th percentile.
        gb_per_s: Bytes moved one way per second, in 10^9; None where it was not measured.
        cpu_seconds: Processor time of the waiting process, for ``wait``.
    """

    provider: str
    level: str
    operation: str
    ranks: int
    bytes: int
    p50_us: float | None = None
    p99_us: float | None = None
    gb_per_s: float | None = None
    cpu_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The row without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile in microseconds, to a tenth."""
    ordered = sorted(seconds)
    worst = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return round(statistics.median(ordered) * 1e6, 1), round(worst * 1e6, 1)


def repeats(size_bytes: int, *, quick: bool) -> int:
    """Round trips for a message of that size: many of small ones, few of large ones."""
    most = 200 if quick else 2000
    return max(10, min(most, 400_000_000 // (size_bytes + 50_000)) // (4 if quick else 1))


def flood_count(size_bytes: int, *, quick: bool) -> int:
    """Messages in a row for a bandwidth."""
    return max(8, min(500, (100_000_000 if quick else 600_000_000) // max(size_bytes, 1)))
