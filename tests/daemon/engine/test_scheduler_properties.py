"""Random requests, cancels and results on stages whose caches are modelled."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_daemon.engine.limits import AnyCaches, Limits
from macmesh_daemon.engine.prefix_index import packed
from macmesh_daemon.engine.requests import Request
from macmesh_placement.stagecache import StageCacheCost, cache_budget_bytes
from support.schedule import Pipeline, constant, growing, window

PIECES = st.lists(
    st.one_of(
        st.builds(growing, st.integers(1, 5)),
        st.builds(window, st.integers(1, 5), st.integers(2, 20)),
        st.builds(constant, st.integers(1, 40)),
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    limits = Limits(
        context_tokens=draw(st.integers(5, 60)),
        slots=draw(st.integers(1, 4)),
        stages=draw(st.integers(1, 3)),
        prefill_chunk_tokens=draw(st.integers(1, 8)),
        waiting=draw(st.integers(0, 4)),
        lookahead=draw(st.integers(0, 1)),
        slots_at_once=draw(st.integers(1, 8)),
        batch_rows=draw(st.integers(1, 4)),
        prefill_least_tokens=draw(st.integers(1, 4)),
        bypasses=draw(st.integers(0, 2)),
        entries=draw(st.integers(0, 3)),
        keep_least_tokens=draw(st.integers(1, 6)),
    )
    slack = draw(st.integers(0, 8))
    stages = draw(st.lists(PIECES, min_size=limits.stages, max_size=limits.stages))
    costs = [StageCacheCost(tuple((piece, 1) for piece in pieces), slack) for pieces in stages]
    budget = [
        cache_budget_bytes(
            cost,
            context_tokens=limits.context_tokens,
            slots=limits.slots,
            prefill_chunk_tokens=limits.prefill_chunk_tokens,
        )
        for cost in costs
    ]
    traits = AnyCaches(
        unbatchable=draw(st.sampled_from(["", "", "mixed"])),
        trim_below_tokens=draw(st.sampled_from([None, None, 0, 10])),
    )
    return Pipeline(limits, costs, budget, traits)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 30), st.integers(0, 12)),
        st.tuples(st.just("cancel"), st.integers(0, 12), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
        st.tuples(st.just("result"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


def drawn_request(name: str, prompt: int, max_tokens: int, context: int) -> Request:
    # Few different beginnings, so that later prompts find kept caches.
    tokens = tuple((i * (1 + prompt % 3)) % 7 for i in range(min(prompt, context)))
    return Request(
        name,
        tokens,
        max_tokens,
        stop_tokens=frozenset({3}) if max_tokens % 2 else frozenset(),
        reuse_prefix=prompt % 5 != 0,
        keep=max_tokens % 4 != 3,
    )


@settings(max_examples=60, deadline=None)
@given(pipelines(), ACTIONS)
def test_every_request_ends_once_with_its_own_tokens_and_every_stage_has_room(
    pipeline: Pipeline, actions: list[tuple[str, int, int]]
) -> None:
    context = pipeline.limits.context_tokens
    for kind, first, second in actions:
        match kind:
            case "submit":
                name = f"r{len(pipeline.requests)}"
                pipeline.submit(drawn_request(name, first, second, context))
            case "cancel":
                pipeline.cancel(f"r{first}")
            case "step":
                pipeline.step()
            case "result":
                pipeline.result()
    # Nothing waits for anything but results: the rest runs to its end.
    pipeline.run()
    assert pipeline.scheduler.idle
    assert not pipeline.house.slots
    assert not pipeline.house.batches
    assert set(pipeline.ended) == set(pipeline.requests)
    for name in pipeline.requests:
        expected, told = pipeline.expected(name), pipeline.tokens[name]
        if pipeline.ended[name] in {"stop", "length"}:
            assert told == expected
        else:
            assert told == expected[: len(told)]
            assert pipeline.ended[name] == "cancelled" or not told
    stats = pipeline.scheduler.stats
    assert stats.cache_bytes == tuple(pipeline.house.held())
    assert stats.entries == len(pipeline.house.entries)


@pytest.mark.parametrize("seed", range(18))
def test_a_crowd_stays_within_little_room(seed: int) -> None:
    rng = Random(seed)  # noqa: S311  drawn cases
    limits = Limits(
        context_tokens=40,
        slots=1 + seed % 2,
        stages=1 + seed % 3,
        prefill_chunk_tokens=6,
        lookahead=seed // 2 % 2,
        batch_rows=4,
        prefill_least_tokens=2,
        keep_least_tokens=2,
    )
    # The first cache is by far the largest, so that converting it takes much room.
    costs = [
        StageCacheCost(((growing(20), 1), (window(rng.randrange(1, 9), 3), 2), (constant(9), 1)), seed % 5)
        for _ in range(limits.stages)
    ]
    budget = [
        cache_budget_bytes(cost, context_tokens=40, slots=limits.slots, prefill_chunk_tokens=6)
        for cost in costs
    ]
    traits = AnyCaches(trim_below_tokens=(None, None, 9, 0)[seed // 3 % 4])
    pipeline = Pipeline(limits, costs, budget, traits)
    for index in range(45):
        # Conversations that go on from what was told before, and prompts with the same beginning.
        earlier = (
            rng.choice(list(pipeline.requests.values())) if pipeline.requests and rng.random() < 0.6 else None
        )
        prompt = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
        if earlier is not None:
            prompt = [*earlier.prompt, *pipeline.tokens[earlier.request_id], *prompt][: rng.randrange(5, 36)]
        stop = frozenset({4}) if rng.random() < 0.5 else frozenset()
        pipeline.submit(Request(f"r{index}", tuple(prompt), rng.randrange(0, 5), stop_tokens=stop))
        if rng.random() < 0.2:
            pipeline.cancel(f"r{rng.randrange(index + 1)}")
        for _ in range(rng.randrange(12)):
            rng.choice([pipeline.step, pipeline.step, pipeline.result, pipeline.turn])()
    pipeline.run()
    assert set(pipeline.ended) == set(pipeline.requests)
    for name, end in pipeline.ended.items():
        expected, told = pipeline.expected(name), pipeline.tokens[name]
        assert told == (expected if end in {"stop", "length"} else expected[: len(told)])
    entries = {entry.number: entry for entry in pipeline.scheduler._holdings.entries}
    assert {number: entry.packed for number, entry in entries.items()} == {
        number: packed(cache.tokens) for number, cache in pipeline.house.entries.items()
    }
    assert pipeline.scheduler.stats.cache_bytes == tuple(pipeline.house.held())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 80), st.integers(1, 20))
def test_prompts_are_cut_as_the_reference_cuts_them(prompt: int, chunk: int) -> None:
    limits = Limits(context_tokens=200, slots=1, stages=1, prefill_chunk_tokens=chunk)
    cost = StageCacheCost(((growing(1), 1),), 0)
    pipeline = Pipeline(limits, [cost], [200], AnyCaches())
    pipeline.submit(Request("a", tuple(range(prompt)), 1))
    pipeline.run()
    cuts = [step.token_count for step in pipeline.steps if step.rows]
    expected, left = [], prompt - 1
    while left > 0:
        expected.append(min(chunk, left))
        left -= expected[-1]
    assert cuts == [*expected, 1]


@pytest.mark.parametrize("lookahead", [0, 1])
@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12))
def test_all_are_served_however_little_room_there_is(lookahead: int, sizes: list[tuple[int, int]]) -> None:
    limits = Limits(
        context_tokens=24, slots=1, stages=2, prefill_chunk_tokens=4, lookahead=lookahead, keep_least_tokens=2
    )
    cost = StageCacheCost(((growing(3), 4), (constant(7), 1)), 2)
    budget = cache_budget_bytes(cost, context_tokens=24, slots=1, prefill_chunk_tokens=4)
    pipeline = Pipeline(limits, [cost, cost], [budget, budget], AnyCaches())
    for index, (prompt, new) in enumerate(sizes):
        pipeline.submit(Request(f"r{index}", tuple(range(prompt)), new))
    pipeline.run()
    assert {*pipeline.ended.values()} == {"length"}
    assert all(pipeline.tokens[name] == pipeline.expected(name) for name in pipeline.requests)
