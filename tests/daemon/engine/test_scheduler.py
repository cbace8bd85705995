import pytest

from macmesh_daemon.engine.requests import (
    Cancelled,
    Effect,
    Finish,
    Generated,
    Refused,
    Release,
    Request,
    Step,
)
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.engine.scheduler import Limits, Scheduler


def limits(**changes: int) -> Limits:
    base = {"context_tokens": 100, "slots": 2, "stages": 2, "prefill_chunk_tokens": 4}
    return Limits(**{**base, **changes})


def request(name: str, prompt: int = 3, max_tokens: int = 2, **more: object) -> Request:
    return Request(name, tuple(range(1, prompt + 1)), max_tokens, **more)  # type: ignore[arg-type]


def must_step(scheduler: Scheduler) -> Step:
    step = scheduler.next_step(0.0)
    assert step is not None
    return step


def run_all(scheduler: Scheduler, token: int = 50) -> tuple[list[Step], list[Effect]]:
    """Runs everything; a result comes as soon as nothing else can be started."""
    steps: list[Step] = []
    effects: list[Effect] = []
    on_their_way: list[Step] = []
    while True:
        step = scheduler.next_step(0.0)
        if step is not None:
            steps.append(step)
            on_their_way.append(step)
        elif on_their_way:
            done = on_their_way.pop(0)
            effects += scheduler.done(done.number, token if done.sample else None, -1.0)
        else:
            return steps, effects


def refusal(effects: list[Effect]) -> Refused:
    (effect,) = effects
    assert isinstance(effect, Refused)
    return effect


def test_one_request_is_cut_as_mlx_lm_cuts_it() -> None:
    scheduler = Scheduler(limits())
    assert scheduler.submit(request("a", prompt=10, max_tokens=3)) == []
    steps, effects = run_all(scheduler)
    assert [(s.offset, len(s.tokens), s.sample, s.first) for s in steps] == [
        (0, 4, False, True),
        (4, 4, False, False),
        (8, 1, False, False),
        (9, 1, True, False),
        (10, 1, True, False),
        (11, 1, True, False),
    ]
    assert [s.number for s in steps] == [1, 2, 3, 4, 5, 6]
    assert [s.sample_index for s in steps] == [0, 0, 0, 0, 1, 2]
    assert {s.reserve_tokens for s in steps} == {13}
    assert steps[-1].tokens == (50,)
    assert effects == [
        Generated("a", 0, 50, -1.0, None),
        Generated("a", 1, 50, -1.0, None),
        Generated("a", 2, 50, -1.0, Finish.LENGTH),
        Release(0, "a"),
    ]
    assert scheduler.idle


def test_prompt_of_one_token_samples_at_once() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", prompt=1, max_tokens=1))
    (step,) = run_all(scheduler)[0]
    assert (step.first, step.sample, step.tokens) == (True, True, (1,))


def test_stop_token_is_told_and_ends_the_request() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", max_tokens=9, stop_tokens=frozenset({50})))
    assert run_all(scheduler)[1] == [Generated("a", 0, 50, -1.0, Finish.STOP), Release(0, "a")]


def test_no_limit_means_up_to_the_context() -> None:
    scheduler = Scheduler(limits(context_tokens=12))
    scheduler.submit(request("a", prompt=5, max_tokens=0))
    effects = run_all(scheduler)[1]
    assert len([e for e in effects if isinstance(e, Generated)]) == 7


def test_too_long_requests_are_refused_before_any_work_with_what_would_fit() -> None:
    scheduler = Scheduler(limits())
    refused = refusal(scheduler.submit(request("a", prompt=90, max_tokens=11)))
    assert refused.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert "at most 10 new tokens" in refused.message
    assert (
        refusal(scheduler.submit(request("a", prompt=100, max_tokens=0))).reason == "CONTEXT_LENGTH_EXCEEDED"
    )
    assert scheduler.next_step(0.0) is None
    assert scheduler.submit(request("a", prompt=90, max_tokens=10)) == []


@pytest.mark.parametrize(
    "bad",
    [
        request("", prompt=3),
        request("a", prompt=0),
        request("a", sampling=Sampling(temperature=-2)),
    ],
)
def test_nonsense_is_refused(bad: Request) -> None:
    assert refusal(Scheduler(limits()).submit(bad)).reason == "INVALID_ARGUMENT"


def test_an_id_is_served_once_at_a_time() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a"))
    assert refusal(scheduler.submit(request("a"))).reason == "INVALID_ARGUMENT"
    run_all(scheduler)
    assert scheduler.submit(request("a")) == []


def test_more_than_the_slots_wait_and_more_than_may_wait_are_refused() -> None:
    scheduler = Scheduler(limits(slots=1, waiting=2))
    for name in "abc":
        assert scheduler.submit(request(name)) == []
    refused = refusal(scheduler.submit(request("d")))
    assert refused.reason == "RESOURCE_EXHAUSTED"
    effects = run_all(scheduler)[1]
    assert [e.request_id for e in effects if isinstance(e, Release)] == ["a", "b", "c"]


def test_decoding_goes_on_between_the_chunks_of_a_long_prompt() -> None:
    scheduler = Scheduler(limits(stages=1))
    scheduler.submit(request("short", prompt=1, max_tokens=4))
    first = must_step(scheduler)
    scheduler.submit(request("long", prompt=41, max_tokens=1))
    scheduler.done(first.number, 50, -1.0)
    order = [s.request_id for s in run_all(scheduler)[0]]
    assert order[:6] == ["short", "long"] * 3


def test_a_lone_prompt_fills_the_pipeline_and_a_shared_one_does_not() -> None:
    scheduler = Scheduler(limits(stages=3))
    scheduler.submit(request("a", prompt=41))
    assert [must_step(scheduler).offset for _ in range(3)] == [0, 4, 8]
    assert scheduler.next_step(0.0) is None

    scheduler = Scheduler(limits(stages=3))
    scheduler.submit(request("a", prompt=41))
    scheduler.submit(request("b", prompt=41))
    assert [must_step(scheduler).request_id for _ in range(2)] == ["a", "b"]
    assert scheduler.next_step(0.0) is None


def test_cancel_frees_the_slot_at_once_and_late_results_are_ignored() -> None:
    scheduler = Scheduler(limits(slots=1))
    scheduler.submit(request("a", prompt=1, max_tokens=9))
    scheduler.submit(request("b", prompt=1, max_tokens=1))
    step = must_step(scheduler)
    assert scheduler.cancel("a") == [Cancelled("a"), Release(0, "a")]
    following = must_step(scheduler)
    assert (following.request_id, following.slot, following.first) == ("b", 0, True)
    assert scheduler.done(step.number, 50, -1.0) == []
    assert scheduler.done(following.number, 51, -1.0) == [
        Generated("b", 0, 51, -1.0, Finish.LENGTH),
        Release(0, "b"),
    ]
    assert scheduler.idle


def test_same_id_again_after_a_cancel_takes_no_token_of_the_old_one() -> None:
    scheduler = Scheduler(limits(slots=1))
    scheduler.submit(request("a", prompt=1, max_tokens=2))
    old = must_step(scheduler)
    scheduler.cancel("a")
    scheduler.submit(request("a", prompt=1, max_tokens=1))
    new = must_step(scheduler)
    assert scheduler.done(old.number, 50, -1.0) == []
    assert scheduler.done(new.number, 51, -1.0)[0] == Generated("a", 0, 51, -1.0, Finish.LENGTH)


def test_cancel_of_waiting_and_of_unknown_requests() -> None:
    scheduler = Scheduler(limits(slots=1))
    scheduler.submit(request("a"))
    scheduler.submit(request("b"))
    assert scheduler.cancel("b") == [Cancelled("b")]
    assert scheduler.cancel("b") == []
    assert scheduler.cancel("nobody") == []


def test_results_must_come_in_order() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", prompt=9))
    must_step(scheduler)
    must_step(scheduler)
    with pytest.raises(ValueError, match="step 1 is the next"):
        scheduler.done(2, None, 0.0)
    with pytest.raises(ValueError, match="step 9"):
        scheduler.done(9, None, 0.0)


def test_overdue_steps_are_seen() -> None:
    scheduler = Scheduler(limits(step_deadline_seconds=5))
    assert scheduler.next_deadline() is None
    scheduler.submit(request("a", prompt=9))
    scheduler.next_step(100.0)
    scheduler.next_step(101.0)
    assert scheduler.next_deadline() == 105.0
    assert scheduler.overdue(104.9) is None
    assert scheduler.overdue(105.0) == 1
    scheduler.done(1, None, 0.0)
    assert scheduler.next_deadline() == 106.0
