"""Bars of memory, all drawn to one scale. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from macmesh_daemon.cli.table import BLUE, CYAN, DIM, GREEN, RED, RESET, YELLOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from macmesh_placement import Ledger


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of memory: what the legend calls it, the sign of one cell, and its colour."""

    name: str
    sign: str
    color: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar."""

    kind: Kind
    size_bytes: int


WEIGHTS: Final = Kind("weights", "█", CYAN)
KV: Final = Kind("KV", "▓", BLUE)
SCRATCH: Final = Kind("scratch", "▒", YELLOW)
OTHER: Final = Kind("other", "░", DIM)
HEADROOM: Final = Kind("headroom", "·", GREEN)
MISSING: Final = Kind("missing", "▚", RED)
NEEDED: Final = Kind("needed and there", "█", CYAN)

LEDGER_KINDS: Final = (WEIGHTS, KV, SCRATCH, OTHER, HEADROOM)

#: Lines of a ledger that are not `OTHER`.
_KIND_OF_LINE: Final = {
    "weights": WEIGHTS,
    "embedding": WEIGHTS,
    "head": WEIGHTS,
    "cache": KV,
    "cache_prefill": SCRATCH,
    "prefill_scratch": SCRATCH,
    "attention_scratch": SCRATCH,
    "sampling": SCRATCH,
}


def ledger_segments(ledger: Ledger) -> tuple[Segment, ...]:
    """A ledger by kind, headroom last: the segments of one bar; they add up to what its node may use.

    A ledger that does not close has no headroom, but a last segment of what is missing.
    """
    sums = dict.fromkeys(LEDGER_KINDS, 0)
    for entry in ledger.entries:
        sums[_KIND_OF_LINE.get(entry.name, OTHER)] += entry.size_bytes
    sums[HEADROOM] = max(0, ledger.headroom_bytes)
    return tuple(Segment(kind, size_bytes) for kind, size_bytes in sums.items())


def need_segments(needed_bytes: int, usable_bytes: int) -> tuple[Segment, ...]:
    """A need against what there is: the part that is there, then what is missing or what is left over."""
    return (
        Segment(NEEDED, min(needed_bytes, usable_bytes)),
        Segment(MISSING, max(0, needed_bytes - usable_bytes)),
        Segment(HEADROOM, max(0, usable_bytes - needed_bytes)),
    )


def render_bar(
    segments: Sequence[Segment], *, scale_bytes: int, cells: int, color: bool = False
) -> tuple[str, int]:
    """One bar, and how many cells it takes.

    Every boundary between two segments lies within half a cell of where it belongs, so that errors do not
    add up; a segment of less than a cell may vanish.

    Args:
        segments: Left to right.
        scale_bytes: Bytes that ``cells`` cells stand for, above 0.
        cells: See there.
        color: With escape sequences.
    """
    text, sum_bytes, drawn = "", 0, 0
    for segment in segments:
        sum_bytes += segment.size_bytes
        end = _rounded(sum_bytes * cells, scale_bytes)
        part = segment.kind.sign * (end - drawn)
        text += f"{segment.kind.color}{part}{RESET}" if color and part else part
        drawn = end
    return text, drawn


def legend(kinds: Sequence[Kind], *, cell_bytes: str, color: bool = False) -> str:
    """What the signs mean, and how much one cell is."""
    parts = [f"{k.color}{k.sign}{RESET} {k.name}" if color else f"{k.sign} {k.name}" for k in kinds]
    return "  ".join([*parts, f"(one cell: {cell_bytes})"])


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
