"""What became of a disturbed stream's tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.drill.tokens import TokenVerdict, compare

TEXT = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("received", "lost", "doubled", "differing"),
    [
        (TEXT, 0, 0, 0),
        ([], 8, 0, 0),
        ([1, 2, 3], 5, 0, 0),
        ([1, 2, 3, 5, 6, 7, 8], 1, 0, 0),
        ([1, 2, 3, 6, 7], 3, 0, 0),
        ([1, 2, 3, 4, 3, 4, 5, 6, 7, 8], 0, 2, 0),
        ([1, 2, 3, 4, 3, 4, 5], 3, 2, 0),
        ([1, 2, 3, 9, 9, 9, 9, 9], 0, 0, 5),
        ([1, 2, 9], 5, 0, 1),
        ([*TEXT, 8], 0, 1, 0),
    ],
)
def test_what_was_lost_doubled_or_differs(
    received: list[int], lost: int, doubled: int, differing: int
) -> None:
    assert compare(TEXT, received) == TokenVerdict(8, len(received), lost, doubled, differing)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_only_equal_streams_are_whole(expected: list[int], received: list[int]) -> None:
    assert compare(expected, received).is_whole == (expected == received)


@given(st.integers(1, 20), st.data())
def test_a_gap_is_a_gap_whatever_its_place(length: int, data: st.DataObject) -> None:
    expected = list(range(100, 100 + length))
    begin = data.draw(st.integers(0, length - 1))
    gap = data.draw(st.integers(1, length - begin))
    verdict = compare(expected, expected[:begin] + expected[begin + gap :])
    assert (verdict.lost, verdict.doubled, verdict.differing) == (gap, 0, 0)
