import pytest

from macmesh_daemon.engine.limits import AnyCaches, Limits
from macmesh_daemon.engine.requests import Cancelled, Effect, Finish, Generated, Refused, Request, Waiting
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.engine.scheduler import Scheduler
from macmesh_daemon.engine.steps import Close, Compose, Forget, Open, Operation, Sampled, Step, StepDone
from macmesh_placement.stagecache import StageCacheCost
from support.schedule import Pipeline, growing

DECODE_SECONDS = 0.02
PROMPT_SECONDS = 0.001
"""Of one token of a prompt."""


def seconds(step: Step) -> float:
    return PROMPT_SECONDS * step.token_count if step.kind == "prefill" else DECODE_SECONDS * bool(step.rows)


def pipeline(
    contexts: float = 4, traits: AnyCaches | None = None, words: int = 1000, **changes: float
) -> Pipeline:
    base = {
        "context_tokens": 1000,
        "slots": 4,
        "stages": 1,
        "prefill_chunk_tokens": 100,
        "keep_least_tokens": 4,
    }
    limits = Limits(**{**base, **changes})  # type: ignore[arg-type]
    cost = StageCacheCost(((growing(1), 20),), 0)
    budget = int(contexts * cost.reserved_bytes(limits.context_tokens))
    return Pipeline(
        limits, [cost] * limits.stages, [budget] * limits.stages, traits or AnyCaches(), seconds, words
    )


def request(name: str, prompt: int = 30, max_tokens: int = 20, first: int = 0, **more: object) -> Request:
    return Request(name, tuple(range(first, first + prompt)), max_tokens, **more)  # type: ignore[arg-type]


def refusal(effects: list[Effect]) -> Refused:
    (effect,) = effects
    assert isinstance(effect, Refused)
    return effect


def operations(pipeline: Pipeline, kind: type) -> list[Operation]:
    return [o for step in pipeline.steps for o in step.operations if isinstance(o, kind)]


def test_one_request_is_cut_as_mlx_lm_cuts_it_and_decodes_one_step_ahead() -> None:
    one = pipeline()
    assert one.submit(request("a", prompt=210, max_tokens=3, keep=False)) == []
    one.run()
    assert [(s.kind, s.rows[0].offset, s.token_count) for s in one.steps if s.rows] == [
        ("prefill", 0, 100),
        ("prefill", 100, 100),
        ("prefill", 200, 9),
        ("decode", 209, 1),
        ("decode", 210, 1),
        ("decode", 211, 1),
    ]
    assert [(r.token, r.sample_index) for s in one.steps if s.kind == "decode" for r in s.rows] == [
        (209, 0),
        (None, 1),
        (None, 2),
    ]
    assert operations(one, Open) == [Open(0, "a", 213, Sampling())]
    assert operations(one, Close) == [Close(0, "a")]
    assert one.steps[-1].kind == "operations"
    assert one.ended == {"a": "length"}
    assert one.scheduler.idle


def test_the_next_decode_step_is_given_out_before_the_last_result() -> None:
    one = pipeline()
    one.submit(request("a", prompt=1, max_tokens=9))
    assert [one.step(), one.step(), one.step()] == [True, True, False]
    without = pipeline(lookahead=0)
    without.submit(request("a", prompt=1, max_tokens=9))
    assert [without.step(), without.step()] == [True, False]
    without.result()
    without.step()
    assert without.steps[-1].rows[0].token == without.tokens["a"][0]


def test_a_step_in_vain_after_a_stop_is_ignored_and_its_token_stays_known() -> None:
    one = pipeline()
    one.submit(request("a", prompt=10, max_tokens=50))
    one.run()
    stop = one.tokens["a"][5]
    again = pipeline()
    again.submit(request("a", prompt=10, max_tokens=50, stop_tokens=frozenset({stop})))
    again.run()
    assert again.tokens["a"] == one.tokens["a"][:6]
    assert again.ended == {"a": "stop"}
    decodes = [s for s in again.steps if s.kind == "decode"]
    assert len(decodes) == 7
    (closed,) = operations(again, Close)
    assert isinstance(closed, Close)
    assert closed.keep_tokens == 16


def test_after_a_cancel_only_tokens_with_known_values_are_kept() -> None:
    one = pipeline()
    one.submit(request("a", prompt=10, max_tokens=50))
    assert [one.step(), one.step(), one.step(), one.step()] == [True, True, True, False]
    one.cancel("a")  # the prompt's last token and a token that nobody knows yet are on their way
    one.run()
    (closed,) = operations(one, Close)
    assert isinstance(closed, Close)
    assert closed.keep_tokens == 10
    one.submit(request("b", prompt=20, max_tokens=5))
    one.run()
    assert one.scheduler.stats.reused_tokens == 10
    assert one.tokens["b"] == one.expected("b")


def test_requests_are_batched_and_rows_join_and_leave() -> None:
    one = pipeline()
    one.submit(request("a", max_tokens=40))
    one.submit(request("b", max_tokens=15))
    one.submit(request("c", max_tokens=60))
    one.run()
    rows = [len(s.rows) for s in one.steps if s.kind == "decode"]
    assert max(rows) == 3
    # All three decode together until b ends, then two until a does, then c by itself.
    changes = [b for a, b in zip([0, *rows], rows, strict=False) if a != b]
    assert changes[-3:] == [3, 2, 1]
    assert min(rows.count(count) for count in (1, 2, 3)) > 8
    assert all(one.tokens[name] == one.expected(name) for name in "abc")


def test_a_batch_has_no_more_rows_than_it_may() -> None:
    one = pipeline(batch_rows=2)
    for name in "abcde":
        one.submit(request(name))
    one.run()
    assert max(len(s.rows) for s in one.steps) == 2
    assert len({s.batch for s in one.steps} - {None}) == 2


def test_caches_that_cannot_be_batched_run_alone() -> None:
    one = pipeline(traits=AnyCaches(unbatchable="two halves"))
    for name in "abc":
        one.submit(request(name))
    one.run()
    assert not operations(one, Compose)
    assert {*one.ended.values()} == {"length"}


def test_a_large_request_runs_alone_beside_small_ones() -> None:
    one = pipeline(contexts=1.3)
    one.submit(request("large", prompt=800, max_tokens=190))
    one.submit(request("small", prompt=20, max_tokens=40))
    one.run()
    assert not operations(one, Compose)
    first = {name: one.told_at[name][0] for name in ("large", "small")}
    assert first["small"] < one.told_at["large"][-1]
    assert {*one.ended.values()} == {"length"}


@pytest.mark.parametrize("lookahead", [0, 1])
def test_two_requests_keep_two_stages_busy(lookahead: int) -> None:
    one = pipeline(stages=2, lookahead=lookahead)
    one.submit(request("a", prompt=1, max_tokens=300))
    one.submit(request("b", prompt=1, max_tokens=300))
    one.run()
    assert min(one.busy) / one.now > 0.95
    assert not operations(one, Compose)


def test_eight_requests_over_four_stages_are_spread_evenly() -> None:
    one = pipeline(stages=4, lookahead=0)
    for index in range(8):
        one.submit(request(f"r{index}", prompt=8, max_tokens=100))
    one.run()
    assert max(len(s.rows) for s in one.steps) == 2
    assert min(one.busy) / one.now > 0.9


def test_a_lone_prompt_fills_the_pipeline() -> None:
    one = pipeline(stages=3)
    one.submit(request("a", prompt=1000 - 20))
    assert [one.step() for _ in range(5)] == [True, True, True, True, False]
    assert [s.rows[0].offset for s in one.steps] == [0, 100, 200, 300]


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_long_prompt_delays_the_tokens_of_others_by_no_more_than_the_slice(
    stages: int, lookahead: int
) -> None:
    slice_seconds = 0.12
    one = pipeline(
        stages=stages,
        lookahead=lookahead,
        context_tokens=6000,
        prefill_chunk_tokens=1000,
        prefill_least_tokens=16,
        prefill_slice_seconds=slice_seconds,
    )
    one.submit(request("stream", prompt=1, max_tokens=400))
    while len(one.tokens["stream"]) < 20:
        one.turn()
    one.submit(request("long", prompt=5000, max_tokens=2))
    one.run()
    assert one.told_at["long"][0] < one.told_at["stream"][-1]
    gaps = [b - a for a, b in zip(one.told_at["stream"], one.told_at["stream"][1:], strict=False)]
    # The first chunk is a guess; a few decode steps of the newcomer go between too.
    chunks = [s.token_count for s in one.steps if s.kind == "prefill"]
    assert chunks[0] == 250 - 250 % 32
    settled = sorted(gaps)[: -3 * stages]
    assert max(settled) <= slice_seconds + 2 * DECODE_SECONDS * stages + 1e-9
    assert max(gaps) <= 0.3 * stages
    # And the prompt gets a good share of the time.
    assert max(chunks[8:-1]) >= 0.5 * slice_seconds / stages / PROMPT_SECONDS


def test_at_most_one_chunk_goes_between_two_decode_steps_of_a_batch() -> None:
    one = pipeline(stages=2, lookahead=1)
    for name in "abc":
        one.submit(request(name, prompt=4, max_tokens=60))
    while not all(one.tokens[name] for name in "abc"):
        one.turn()
    one.submit(request("p", prompt=900, max_tokens=1))
    one.submit(request("q", prompt=900, max_tokens=1))
    count = len(one.steps)
    while not set("abc") & set(one.ended):
        one.turn()
    chunks: dict[str, int] = dict.fromkeys("abc", 0)
    for step in one.steps[count:]:
        if step.kind == "prefill":
            chunks = {name: count + 1 for name, count in chunks.items()}
            assert max(chunks.values()) <= 1
        chunks |= {
            row.request_id: 0 for row in step.rows if row.request_id in chunks and step.kind == "decode"
        }


def test_a_short_prompt_passes_a_long_one_and_the_oldest_gets_half() -> None:
    one = pipeline()
    one.submit(request("long", prompt=900, max_tokens=1))
    one.submit(request("short", prompt=150, max_tokens=1, first=50))
    one.run()
    order = [s.rows[0].request_id for s in one.steps if s.kind == "prefill"]
    assert order[:4] == ["long", "short", "long", "short"]
    assert list(one.ended) == ["short", "long"]


def test_too_long_requests_are_refused_before_any_work_with_what_would_fit() -> None:
    one = pipeline()
    refused = refusal(one.submit(request("a", prompt=900, max_tokens=101)))
    assert refused.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert "at most 100 new tokens" in refused.message
    assert refusal(one.submit(request("a", prompt=1000, max_tokens=0))).reason == "CONTEXT_LENGTH_EXCEEDED"
    assert one.scheduler.next_step(0.0) is None


def test_what_never_fits_is_refused_with_the_number_that_would() -> None:
    one = pipeline(contexts=0.5)
    refused = refusal(one.submit(request("a", prompt=400, max_tokens=200)))
    assert refused.reason == "RESOURCE_EXHAUSTED"
    assert "500 tokens would fit" in refused.message
    assert "at most 100 new tokens" in refused.message
    assert one.submit(request("a", prompt=400, max_tokens=100)) == []


@pytest.mark.parametrize(
    "bad",
    [
        request("", prompt=3),
        request("a", prompt=0),
        request("a", max_tokens=-1),
        request("a", sampling=Sampling(temperature=-2)),
    ],
)
def test_nonsense_is_refused(bad: Request) -> None:
    assert refusal(pipeline().submit(bad)).reason == "INVALID_ARGUMENT"


def test_an_id_is_served_once_at_a_time() -> None:
    scheduler = pipeline().scheduler
    assert scheduler.submit(request("a")) == []
    assert refusal(scheduler.submit(request("a"))).reason == "INVALID_ARGUMENT"


def test_what_does_not_fit_waits_with_a_position_and_an_estimate() -> None:
    one = pipeline(contexts=1, waiting=3)
    for name in "abcd":
        one.submit(request(name, prompt=500, max_tokens=400))
    assert one.effects == [Waiting("b", 1, None), Waiting("c", 2, None), Waiting("d", 3, None)]
    refused = refusal(one.submit(request("e", prompt=500, max_tokens=400)))
    assert refused.reason == "RESOURCE_EXHAUSTED"
    one.run()
    told = [e for e in one.effects if isinstance(e, Waiting) and e.request_id == "d"]
    assert [e.position for e in told] == [3, 2, 1]
    took = one.told_at["a"][-1]
    assert told[1].estimate_seconds == pytest.approx(2 * took, rel=0.2)
    assert {*one.ended.values()} == {"length", "refused"}


def test_positions_are_told_at_most_once_a_second() -> None:
    one = pipeline(contexts=1)
    for index in range(6):
        one.submit(request(f"r{index}", prompt=900, max_tokens=100, first=index))
    one.effects.clear()
    for index in range(1, 5):
        one.cancel(f"r{index}")
    assert not [e for e in one.effects if isinstance(e, Waiting)]
    while one.now < 1.5:
        one.turn()
    assert [e for e in one.effects if isinstance(e, Waiting)] == [Waiting("r5", 1, None)]


def test_small_requests_pass_a_large_one_only_so_often() -> None:
    one = pipeline(contexts=1, bypasses=3)
    one.submit(request("first", prompt=100, max_tokens=300, keep=False))
    one.submit(request("large", prompt=500, max_tokens=450, keep=False))
    for index in range(6):
        one.submit(request(f"s{index}", prompt=10, max_tokens=10, keep=False, first=9))
    one.run()
    begun = sorted(one.first_step, key=lambda name: one.first_step[name])
    assert begun.index("large") == 4
    assert set(begun[1:4]) == {"s0", "s1", "s2"}


def test_passing_ends_after_a_time_too() -> None:
    one = pipeline(contexts=1, bypass_seconds=1.0)
    one.submit(request("first", prompt=100, max_tokens=300, keep=False))
    one.submit(request("large", prompt=500, max_tokens=450, keep=False))
    while one.now < 2:
        one.turn()
    one.submit(request("small", prompt=10, max_tokens=10))
    one.run()
    opened = [o.request_id for o in operations(one, Open) if isinstance(o, Open)]
    assert opened == ["first", "large", "small"]


def test_cancel_frees_the_slot_at_the_next_step_and_late_results_are_ignored() -> None:
    one = pipeline(contexts=1)
    one.submit(request("a", prompt=1, max_tokens=900))
    one.submit(request("b", prompt=900, max_tokens=1))
    one.step()
    one.step()
    assert one.cancel("a") == [Cancelled("a")]
    one.step()
    close, opened = one.steps[-1].operations
    assert isinstance(close, Close)
    assert isinstance(opened, Open)
    assert (close.slot, opened.slot, opened.request_id) == (0, 0, "b")
    one.run()
    assert one.tokens["a"] == []
    assert one.ended == {"a": "cancelled", "b": "length"}


def test_the_same_id_again_after_a_cancel_takes_no_token_of_the_old_one() -> None:
    one = pipeline()
    one.submit(request("a", prompt=1, max_tokens=2))
    one.step()
    one.cancel("a")
    del one.ended["a"]
    one.submit(request("a", prompt=3, max_tokens=4))
    one.run()
    assert one.tokens["a"] == one.expected("a")


def test_cancel_of_waiting_and_of_unknown_requests() -> None:
    one = pipeline(slots_at_once=1)
    one.submit(request("a"))
    one.submit(request("b"))
    assert one.cancel("b") == [Cancelled("b")]
    assert one.cancel("b") == []
    assert one.cancel("nobody") == []


def test_the_next_turn_of_a_conversation_takes_up_the_caches() -> None:
    one = pipeline()
    one.submit(request("a", prompt=300, max_tokens=20))
    one.run()
    prompt = (*range(300), *one.tokens["a"], 7, 8, 9)
    one.submit(Request("b", prompt, 5))
    one.run()
    assert one.tokens["b"] == one.expected("b")
    assert next(s.token_count for s in one.steps if s.rows and s.rows[0].request_id == "b") == 3
    stats = one.scheduler.stats
    assert (stats.prefix_hits, stats.reused_tokens, stats.prompt_tokens) == (1, 319, 623)


def test_requests_may_opt_out_of_keeping_and_of_taking_up() -> None:
    one = pipeline()
    one.submit(request("a", keep=False))
    one.run()
    assert one.scheduler.stats.entries == 0
    one.submit(request("b"))
    one.run()
    one.submit(request("c", reuse_prefix=False))
    one.run()
    assert one.scheduler.stats.prefix_hits == 0


def test_caches_that_cannot_be_cut_are_taken_up_whole_or_not_at_all() -> None:
    one = pipeline(traits=AnyCaches(trim_below_tokens=0))
    one.submit(request("a", prompt=300, max_tokens=20))
    one.run()
    one.submit(request("other", prompt=310, max_tokens=2))
    one.run()
    assert one.scheduler.stats.prefix_hits == 0
    prompt = (*range(300), *one.tokens["a"], 7, 8, 9)
    one.submit(Request("b", prompt, 5))
    one.run()
    assert one.scheduler.stats.prefix_hits == 1
    assert one.tokens["b"] == one.expected("b")


def test_kept_caches_make_room_for_what_needs_it_the_oldest_first() -> None:
    one = pipeline(contexts=1)
    for index in range(3):
        one.submit(request(f"r{index}", prompt=200, max_tokens=20, first=300 * index))
        one.run()
    assert one.scheduler.stats.entries == 3
    one.submit(request("large", prompt=600, max_tokens=20, first=10_000))
    one.run()
    assert operations(one, Forget) == [Forget(1), Forget(2)]


def test_a_whole_context_is_kept_where_it_is_and_taken_up_again() -> None:
    one = pipeline(contexts=1)
    one.submit(request("a", prompt=500, max_tokens=0, stop_tokens=frozenset(range(0, 1000, 9))))
    one.run()
    (closed,) = operations(one, Close)
    assert isinstance(closed, Close)
    assert closed.keep_reserve_tokens == 1000
    one.submit(Request("b", (*range(500), *one.tokens["a"], 7), 0, stop_tokens=frozenset(range(0, 1000, 9))))
    one.run()
    assert one.scheduler.stats.prefix_hits == 1
    assert one.tokens["b"] == one.expected("b")


@pytest.mark.parametrize(("contexts", "hits"), [(1.0, 0), (1.03, 1)])
def test_an_entry_is_taken_up_only_where_one_of_its_caches_can_be_converted_at_a_time(
    contexts: float, hits: int
) -> None:
    one = pipeline(contexts=contexts)
    one.submit(request("short", prompt=480, max_tokens=20))
    one.run()
    one.submit(request("long", prompt=600, max_tokens=400))
    one.run()
    assert one.scheduler.stats.prefix_hits == hits
    assert one.tokens["long"] == one.expected("long")


def test_history_goes_along_where_a_processor_needs_it() -> None:
    one = pipeline()
    one.submit(request("a", sampling=Sampling(presence_penalty=1.0)))
    one.step()
    (opened,) = one.steps[0].operations
    assert isinstance(opened, Open)
    assert opened.history == tuple(range(10, 30))


def test_results_must_come_in_order_and_fit() -> None:
    scheduler = Scheduler(Limits(context_tokens=100, slots=2, stages=2, prefill_chunk_tokens=4))
    scheduler.submit(request("a", prompt=6))
    scheduler.next_step(0.0)
    scheduler.next_step(0.0)
    with pytest.raises(ValueError, match="step 1 is the next"):
        scheduler.done(StepDone(2), 1.0)
    scheduler.done(StepDone(1), 1.0)
    scheduler.done(StepDone(2), 1.0)
    with pytest.raises(ValueError, match="step 9"):
        scheduler.done(StepDone(9), 1.0)
    step = scheduler.next_step(1.0)
    assert step is not None
    with pytest.raises(ValueError, match="has 1 rows"):
        scheduler.done(StepDone(step.number), 1.0)
    assert scheduler.done(StepDone(step.number, (Sampled(5, -1.0),)), 1.0) == [
        Generated("a", 0, 5, -1.0, None)
    ]


def test_no_limit_means_up_to_the_context() -> None:
    one = pipeline()
    one.submit(request("a", prompt=995, max_tokens=0))
    one.run()
    assert one.effects[-1] == Generated("a", 4, one.tokens["a"][-1], -0.5, Finish.LENGTH)


def test_overdue_steps_are_seen() -> None:
    scheduler = Scheduler(
        Limits(context_tokens=100, slots=2, stages=2, prefill_chunk_tokens=4, step_deadline_seconds=5)
    )
    assert scheduler.next_deadline() is None
    scheduler.submit(request("a", prompt=19))
    scheduler.next_step(100.0)
    scheduler.next_step(101.0)
    assert scheduler.next_deadline() == 105.0
    assert scheduler.overdue(104.9) is None
    assert scheduler.overdue(105.0) == 1
    scheduler.done(StepDone(1), 103.0)
    assert scheduler.next_deadline() == 108.0
