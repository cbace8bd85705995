"""Bars are true to half a cell, and readable where only ASCII is."""

from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.cli.bars import (
    HEADROOM,
    KV,
    LEDGER_KINDS,
    MISSING,
    NEEDED,
    OTHER,
    SCRATCH,
    WEIGHTS,
    Segment,
    ledger_segments,
    legend,
    need_segments,
    render_bar,
)
from macmesh_daemon.cli.output import encodable
from macmesh_daemon.cli.plan_view import render_bars
from macmesh_daemon.cli.table import display_width
from macmesh_placement import Ledger, LedgerEntry

SIZES = st.lists(st.integers(0, 10**12), min_size=5, max_size=5).filter(any)


@given(SIZES, st.integers(1, 200))
def test_every_boundary_is_within_half_a_cell(sizes: list[int], cells: int) -> None:
    segments = [Segment(kind, size) for kind, size in zip(LEDGER_KINDS, sizes, strict=True)]
    bar, used = render_bar(segments, scale_bytes=sum(sizes), cells=cells)
    assert len(bar) == used == cells
    end = 0
    for segment, drawn in zip(segments, (bar.count(kind.sign) for kind in LEDGER_KINDS), strict=True):
        end += drawn
        true_end = sum(s.size_bytes for s in segments[: segments.index(segment) + 1]) * cells / sum(sizes)
        assert abs(end - true_end) <= 0.5 + 1e-9


def test_a_ledger_by_kind_adds_up_to_what_is_usable() -> None:
    lines = {"weights": 40, "embedding": 3, "head": 2, "cache": 20, "prefill_scratch": 4, "sampling": 1}
    lines |= {"attention_scratch": 2, "cache_prefill": 3, "transport_pool": 5, "runtime_reserve": 6}
    ledger = Ledger(
        entries=tuple(LedgerEntry(name=n, size_bytes=b, source="") for n, b in lines.items()),
        usable_bytes=100,
    )
    sizes = {segment.kind: segment.size_bytes for segment in ledger_segments(ledger)}
    assert sizes == {WEIGHTS: 45, KV: 20, SCRATCH: 10, OTHER: 11, HEADROOM: 14}
    assert sum(sizes.values()) == ledger.usable_bytes


def test_a_need_shows_what_is_missing() -> None:
    assert [s.size_bytes for s in need_segments(30, 20)] == [20, 10, 0]
    assert [s.size_bytes for s in need_segments(20, 30)] == [20, 0, 10]
    assert render_bar(need_segments(30, 20), scale_bytes=30, cells=6)[0] == NEEDED.sign * 4 + MISSING.sign * 2


def test_the_bars_fit_the_terminal_and_share_a_scale() -> None:
    rows = [
        ("studio", (Segment(WEIGHTS, 60), Segment(HEADROOM, 40)), "40 left"),
        ("a-laptop-with-a-very-long-name-indeed", (Segment(WEIGHTS, 20), Segment(HEADROOM, 5)), "5 left"),
    ]
    for width in (60, 80, 120):
        _, first, second = render_bars(rows, LEDGER_KINDS, width).splitlines()
        assert display_width(first) <= width
        assert display_width(second) <= width
        assert abs(first.count(WEIGHTS.sign) - 3 * second.count(WEIGHTS.sign)) <= 2
    assert "…" in render_bars(rows, LEDGER_KINDS, 80)
    colored = render_bars(rows, LEDGER_KINDS, 80, color=True)
    assert WEIGHTS.color in colored
    assert WEIGHTS.color not in render_bars(rows, LEDGER_KINDS, 80)


def test_an_ascii_stream_gets_signs_that_still_differ() -> None:
    signs = [kind.sign for kind in (*LEDGER_KINDS, MISSING)]
    plain = encodable("".join(signs), "ascii")
    assert plain.isascii()
    assert len(set(plain)) == len(signs)
    assert encodable(legend(LEDGER_KINDS, cell_bytes="1 GB"), "utf-8") == legend(
        LEDGER_KINDS, cell_bytes="1 GB"
    )
    assert encodable("· é …", "ascii") == ". ? ~"
    assert encodable("· é …", "latin-1") == "· é ~".replace("·", ".")
