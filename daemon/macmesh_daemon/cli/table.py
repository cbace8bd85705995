"""Plain tables: fixed columns, aligned by display width, one line per row."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

GAP: Final = "  "
ELLIPSIS: Final = "…"

RESET: Final = "\x1b[0m"
BOLD: Final = "\x1b[1m"
DIM: Final = "\x1b[2m"
RED: Final = "\x1b[31m"
GREEN: Final = "\x1b[32m"
YELLOW: Final = "\x1b[33m"
BLUE: Final = "\x1b[34m"
CYAN: Final = "\x1b[36m"


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        title: Its header.
        right: Align to the right, as numbers are.
        least: Where the table is too wide, the column may be cut down to this width; None: never cut.
    """

    title: str
    right: bool = False
    least: int | None = None


def display_width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def cut(text: str, width: int) -> str:
    """The text in at most that many columns; what is cut off leaves an ellipsis."""
    if display_width(text) <= width:
        return text
    while text and display_width(text) > width - 1:
        text = text[:-1]
    return text + ELLIPSIS


def render_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    colors: Mapping[tuple[int, int], str] | None = None,
    header_color: str = "",
) -> str:
    """The table as text, without a newline at the end.

    Args:
        columns: The columns.
        rows: Their cells, one line each.
        width: Columns of the terminal; None does not limit. Only columns with a `Column.least` give way, the
            widest first; where that is not enough the lines stay too long.
        colors: Row and column number to escape sequence.
        header_color: Escape sequence of the header.
    """
    widths = [
        max([display_width(column.title), *(display_width(row[i]) for row in rows)])
        for i, column in enumerate(columns)
    ]
    if width is not None:
        excess = sum(widths) + len(GAP) * (len(columns) - 1) - width
        while excess > 0:
            spare = [(widths[i] - c.least, i) for i, c in enumerate(columns) if c.least is not None]
            most, index = max(spare, default=(0, 0))
            if most <= 0:
                break
            widths[index] -= 1
            excess -= 1
    header = _line(columns, [column.title for column in columns], widths, {})
    lines = [f"{header_color}{header}{RESET}" if header_color else header]
    for number, row in enumerate(rows):
        paint = {j: color for (i, j), color in (colors or {}).items() if i == number}
        lines.append(_line(columns, row, widths, paint))
    return "\n".join(lines)


def _line(
    columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int], colors: Mapping[int, str]
) -> str:
    parts = []
    for index, (column, cell) in enumerate(zip(columns, cells, strict=True)):
        text = cut(cell, widths[index])
        space = " " * (widths[index] - display_width(text))
        last = index == len(columns) - 1
        painted = f"{colors[index]}{text}{RESET}" if index in colors else text
        parts.append(space + painted if column.right else painted if last else painted + space)
    return GAP.join(parts).rstrip()
