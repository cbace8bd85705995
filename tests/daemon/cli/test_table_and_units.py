"""Tables and numbers for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.cli import units
from macmesh_daemon.cli.table import Column, cut, display_width, render_table

CELL = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=30)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00 kB"),
        (999, "1.00 kB"),
        (61_400_000_000, "61.4 GB"),
        (99_960_000_000, "100 GB"),
        (999_600_000, "1.00 GB"),
        (-5_000_000, "-5.00 MB"),
        (2_000_000_000_000, "2.00 TB"),
    ],
)
def test_sizes(value: int, text: str) -> None:
    assert units.size(value) == text


def test_ram_is_told_as_it_is_sold() -> None:
    assert units.ram(128 << 30) == "128 GiB"
    assert units.ram(128 * 10**9) == "128 GB"


@given(st.integers(-(10**15), 10**15))
def test_sizes_are_short_and_close(value: int) -> None:
    number, unit = units.size(value).split()
    factor = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert abs(float(number) * factor - value) <= max(0.006 * abs(value), 6)
    assert len(number.lstrip("-")) <= 4 or unit == "TB"


@given(CELL, st.integers(1, 20))
def test_cut_keeps_to_the_width(text: str, width: int) -> None:
    assert display_width(cut(text, width)) <= width
    assert cut(text, display_width(text) or 1) == text


@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=5), st.none() | st.integers(1, 80))
def test_columns_start_at_the_same_place(rows: list[tuple[str, str, str]], width: int | None) -> None:
    columns = (Column("A", least=3), Column("B", right=True), Column("C"))
    lines = render_table(columns, rows, width=width).split("\n")
    assert len(lines) == 1 + len(rows)
    start = display_width(lines[0][: lines[0].rindex("C")])
    for line, row in zip(lines[1:], rows, strict=True):
        if row[2]:
            assert line.endswith(row[2])
            assert display_width(line) - display_width(row[2]) == start
