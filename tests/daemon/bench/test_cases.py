"""Which runs are made: lengths that fit, prompts that can be drawn again."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.bench.cases import (
    Case,
    check_fits,
    load_cases,
    prompt,
    prompts,
    rungs,
    sweep_cases,
    sweep_lengths,
    warm_up_prompt_tokens,
)
from macmesh_daemon.bench.errors import LocalBenchArgumentError


@given(st.integers(2, 300_000), st.integers(1, 500), st.integers(0, 5000))
def test_rungs_grow_to_exactly_the_context(context: int, new: int, first: int) -> None:
    if context <= new:
        with pytest.raises(LocalBenchArgumentError, match="room"):
            rungs(context, new, first)
        return
    lengths = rungs(context, new, first)
    assert lengths[-1] == context
    assert lengths[0] > new
    # Every rung has a token of prompt of its own beside its answer.
    assert all(later - earlier > new for earlier, later in itertools.pairwise(lengths))
    assert len(lengths) <= 20


def test_a_climb_doubles() -> None:
    assert rungs(10_000, 64) == (1024, 2048, 4096, 8192, 10_000)
    assert rungs(500, 8) == (62, 124, 248, 500)
    assert rungs(2050, 64) == (256, 512, 1024, 2050)  # 2,048 is too near to the top for an answer of its own


@given(st.integers(0, 200_000), st.integers(1, 300))
def test_a_sweep_ends_where_the_context_is_full(context: int, new: int) -> None:
    lengths = sweep_lengths(context, new)
    assert list(lengths) == sorted(set(lengths))
    if context > new:
        assert lengths[-1] == context - new
        check_fits(sweep_cases(lengths, new, rounds=1), context)
    else:
        assert lengths == ()


@given(st.integers(0, 2**64), st.integers(1, 300_000), st.integers(0, 200))
def test_a_prompt_has_its_length_and_lies_in_the_vocabulary(seed: int, vocabulary: int, tokens: int) -> None:
    ids = prompt(seed, vocabulary, tokens, "a", 1)
    assert len(ids) == tokens
    assert all(0 <= i < vocabulary for i in ids)
    assert ids == prompt(seed, vocabulary, tokens, "a", 1)


def test_cold_prompts_are_all_new_and_warm_ones_the_same_in_every_round() -> None:
    cold = Case("load", "cold", 32, 8, concurrency=3, rounds=4)
    drawn = [tuple(p) for r in range(4) for p in prompts(cold, 7, 50_000, r)]
    assert len({p[:2] for p in drawn}) == 12
    warm = Case("load", "warm", 32, 8, concurrency=3, rounds=4)
    first = prompts(warm, 7, 50_000, 0)
    assert len({tuple(p) for p in first}) == 3
    assert all(prompts(warm, 7, 50_000, r) == first for r in range(4))
    assert not {tuple(p) for p in first} & set(drawn)
    assert prompts(cold, 8, 50_000, 0) != prompts(cold, 7, 50_000, 0)


def test_the_cases_of_a_load_and_of_a_sweep() -> None:
    found = load_cases(512, 64, concurrencies=(1, 4), prefixes=("cold", "warm"), rounds=2)
    assert [(c.concurrency, c.prefix) for c in found] == [(1, "cold"), (1, "warm"), (4, "cold"), (4, "warm")]
    assert {(c.prompt_tokens, c.new_tokens, c.rounds) for c in found} == {(512, 64, 2)}
    swept = sweep_cases([4096, 256, 4096], 16, rounds=1)
    assert [(c.suite, c.prompt_tokens, c.concurrency) for c in swept] == [
        ("sweep", 256, 1),
        ("sweep", 4096, 1),
    ]
    assert len({c.name for c in (*found, *swept)}) == 6


def test_a_warm_up_has_the_length_of_the_longest_prompt_up_to_one_step() -> None:
    cases = [Case("sweep", "cold", tokens, 64) for tokens in (300, 9000, 20)]
    assert warm_up_prompt_tokens(cases, 1024) == 1024
    assert warm_up_prompt_tokens(cases, 16384) == 9000
    assert warm_up_prompt_tokens([], 1024) == 1


def test_what_does_not_fit_is_refused_with_the_number_that_would() -> None:
    check_fits([Case("load", "cold", 960, 64)], 1024)
    with pytest.raises(LocalBenchArgumentError, match="at most 960"):
        check_fits([Case("load", "cold", 961, 64)], 1024)
