"""Percentiles and the times of one request, against slow definitions of the same."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.bench.requests import Arrival, RequestRun
from macmesh_daemon.bench.statistics import Spread, nearest_rank

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=300)


@given(VALUES, st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_enough_values_do_not_exceed(
    values: list[float], percent: int
) -> None:
    found = nearest_rank(values, percent)
    assert found in values
    assert 100 * sum(v <= found for v in values) >= percent * len(values)
    smaller = [v for v in values if v < found]
    if smaller:
        assert 100 * sum(v <= max(smaller) for v in values) < percent * len(values)


def test_percentiles_of_a_hundred_values() -> None:
    spread = Spread.of(float(i) for i in range(100, 0, -1))
    assert (spread.count, spread.p50, spread.p95, spread.p99, spread.largest) == (100, 50, 95, 99, 100)
    assert nearest_rank([1.0, 2.0], 100) == 2
    assert nearest_rank([float(i) for i in range(1, 21)], 95) == 19
    assert Spread.of([]) == Spread(0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_what_has_no_percentile_raises(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        nearest_rank(values, percent)


@st.composite
def runs(draw: st.DrawFn) -> RequestRun:
    gaps = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
    sizes = draw(st.lists(st.integers(1, 5), min_size=len(gaps), max_size=len(gaps)))
    began = draw(st.integers(0, 10_000))
    times = itertools.accumulate(gaps, initial=began)
    next(times)
    arrivals = tuple(Arrival(float(at), tuple(range(size))) for at, size in zip(times, sizes, strict=True))
    return RequestRun(draw(st.integers(1, 5000)), float(began), arrivals)


@given(runs())
def test_times_of_a_request_add_up(run: RequestRun) -> None:
    inter = run.inter_token_seconds
    assert len(inter) == len(run.token_ids) - len(run.arrivals[0].token_ids)
    assert all(seconds > 0 for seconds in inter)
    assert run.first_token_seconds + sum(inter) == pytest.approx(run.ended_seconds - run.began_seconds)
    assert run.prefill_tokens_per_second == pytest.approx(run.prompt_tokens / run.first_token_seconds)
    if inter:
        assert run.decode_tokens_per_second == pytest.approx(len(inter) / sum(inter))
    else:
        assert run.decode_tokens_per_second == 0


def test_tokens_that_come_together_share_their_time() -> None:
    run = RequestRun(100, 10.0, (Arrival(12.0, (1, 2)), Arrival(13.0, (3,)), Arrival(15.0, (4, 5, 6, 7))))
    assert run.first_token_seconds == 2
    assert run.inter_token_seconds == (1.0, 0.5, 0.5, 0.5, 0.5)
    assert run.prefill_tokens_per_second == 50
    assert run.decode_tokens_per_second == pytest.approx(5 / 3)
    assert run.token_ids == (1, 2, 3, 4, 5, 6, 7)
