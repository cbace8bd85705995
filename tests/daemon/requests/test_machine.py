"""One request from its acceptance to its end, event by event."""

import pytest

from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.requests import Ask, Finish, RequestMachine, RequestSettings
from macmesh_daemon.requests import effects as fx
from macmesh_daemon.requests import events as ev
from macmesh_daemon.requests.machine import LOSSES

PROMPT = (7, 8, 9)
SETTINGS = RequestSettings(patience_seconds=10, retry_seconds=1, longest_retry_seconds=3, most_lost_plans=3)
ONE, TWO = Epoch(1, 1, 1), Epoch(1, 1, 2)
LOADING = ev.PlanPending(TWO, "NOT_READY", "stage 1 loads", "d")


def ready(epoch: Epoch = ONE, context: int = 100, head: str = "a", digest: str = "d") -> ev.PlanReady:
    return ev.PlanReady(epoch, head, context, digest, "m")


def machine(max_tokens: int = 5, generated: tuple[int, ...] = ()) -> RequestMachine:
    ask = Ask("r", PROMPT, "d", max_tokens, frozenset({2}))
    return RequestMachine(ask, now=0.0, settings=SETTINGS, generated=generated)


def running(max_tokens: int = 5) -> RequestMachine:
    made = machine(max_tokens)
    made.step(ready(), 0.0)
    return made


def test_a_request_runs_delivers_and_finishes() -> None:
    request = machine()
    assert request.state == "accepted"
    assert request.step(ready(), 0.0) == [fx.Run(1, ONE, "a", PROMPT, (), 5)]
    assert request.step(ev.Queued(1, 2, None), 0.5) == [fx.TellQueued(2, None)]
    assert request.step(ev.Token(1, 0, 40, -1.0), 1.0) == [fx.Deliver(0, 40, -1.0, None)]
    assert request.step(ev.Token(1, 1, 41, -2.0, Finish.LENGTH), 1.5) == [
        fx.Deliver(1, 41, -2.0, Finish.LENGTH),
        fx.Finished(Finish.LENGTH),
    ]
    assert request.log.token_ids == [40, 41]
    assert request.ended
    assert request.step(ev.ClientGone(), 2.0) == []


def test_a_lost_run_goes_on_under_the_next_plan_behind_its_tokens() -> None:
    request = running()
    request.step(ev.Token(1, 0, 40), 1.0)
    lost = request.step(ev.RunFailed(1, "WORKER_FAILED", "it was killed"), 2.0)
    assert lost == [
        fx.RunLost(1, ONE, "WORKER_FAILED", "it was killed"),
        fx.TellPaused("WORKER_FAILED", "it was killed"),
    ]
    assert request.step(LOADING, 3.0) == [fx.TellPaused("NOT_READY", "stage 1 loads")]
    assert request.step(LOADING, 3.0) == []
    assert request.next_deadline() == 12.0
    assert request.step(ready(TWO, head="b"), 4.0) == [fx.Run(2, TWO, "b", PROMPT, (40,), 5)]
    assert request.step(ev.Token(1, 1, 66), 4.1) == []  # of the run that was given up
    assert request.step(ev.Token(2, 1, 41), 5.0) == [fx.Deliver(1, 41, 0.0, None)]
    assert request.next_deadline() is None


@pytest.mark.parametrize("event", [ready(TWO), LOADING], ids=lambda e: type(e).__name__)
def test_a_newer_plan_ends_the_run_of_the_older(event: ev.Event) -> None:
    request = running()
    effects = request.step(event, 1.0)
    assert effects[0] == fx.CancelRun(1)
    assert isinstance(effects[1], fx.RunLost)
    assert isinstance(effects[-1], fx.Run) == isinstance(event, ev.PlanReady)
    assert request.step(ev.Token(1, 0, 40), 1.1) == []


def test_a_plan_that_is_pending_without_a_successor_leaves_the_run_alone() -> None:
    request = running()
    assert request.step(ev.PlanPending(ONE, "NO_QUORUM", "two nodes are away", "d"), 1.0) == []
    assert request.step(ev.PlanPending(None, "NO_QUORUM", "two nodes are away", "d"), 1.0) == []
    assert request.step(ev.Token(1, 0, 40), 1.1) == [fx.Deliver(0, 40, 0.0, None)]
    # Its loss now waits for a plan, not for a pause.
    request.step(ev.RunFailed(1, "PEER_UNREACHABLE", "away"), 2.0)
    assert request.next_deadline() == 12.0
    assert isinstance(request.step(ready(ONE), 2.1)[0], fx.Run)


@pytest.mark.parametrize("reason", sorted(LOSSES))
def test_the_plan_that_lost_a_run_is_asked_again_less_and_less_often(reason: str) -> None:
    request = running()
    pauses = []
    now = 0.0
    for number in range(1, 5):
        request.step(ev.RunFailed(number, reason, "lost"), now)
        deadline = request.next_deadline()
        assert deadline is not None
        pauses.append(deadline - now)
        now = deadline
        assert request.step(ready(), now - 0.1) == []
        assert isinstance(request.step(ev.Tick(), now)[0], fx.Run)
    assert pauses == [1, 2, 3, 3]
    request.step(ev.RunFailed(5, reason, "lost"), now)
    assert isinstance(request.step(ready(TWO), now)[0], fx.Run)  # another plan is tried at once


def test_a_request_under_which_every_plan_ends_is_given_up() -> None:
    request = running()
    for seq in (1, 2):
        assert request.step(ev.RunFailed(seq, "WORKER_FAILED", "it ended"), 0.0)
        assert isinstance(request.step(ready(Epoch(1, 1, seq + 1)), 0.0)[-1], fx.Run)
    assert request.step(ev.RunFailed(3, "WORKER_FAILED", "it ended"), 0.0) == [
        fx.Failed("WORKER_FAILED", "it ended")
    ]


def test_a_token_shows_that_the_request_is_not_the_reason() -> None:
    request = running(max_tokens=50)
    for seq in range(1, 10):
        request.step(ev.Token(seq, seq - 1, 40), 0.0)
        request.step(ev.RunFailed(seq, "WORKER_FAILED", "it ended"), 0.0)
        assert isinstance(request.step(ready(Epoch(1, 1, seq + 1)), 0.0)[-1], fx.Run)


@pytest.mark.parametrize("reason", ["INVALID_ARGUMENT", "INTERNAL", "CONTEXT_LENGTH_EXCEEDED", "UNKNOWN"])
def test_what_would_come_again_is_not_repeated(reason: str) -> None:
    request = running()
    assert request.step(ev.RunFailed(1, reason, "no", {"field": "x"}), 1.0) == [
        fx.Failed(reason, "no", {"field": "x"})
    ]


def test_no_room_refuses_a_new_request_and_lets_an_old_one_wait() -> None:
    request = running()
    assert isinstance(request.step(ev.RunFailed(1, "RESOURCE_EXHAUSTED", "full"), 1.0)[0], fx.Failed)
    request = running()
    request.step(ev.RunFailed(1, "WORKER_FAILED", "it ended"), 1.0)
    request.step(ready(TWO), 1.0)
    assert request.step(ev.RunFailed(2, "RESOURCE_EXHAUSTED", "full"), 2.0)[1:] == [
        fx.TellPaused("RESOURCE_EXHAUSTED", "full")
    ]
    assert request.next_deadline() == 4.0
    resumed = machine(generated=(40,))
    resumed.step(ready(), 0.0)
    assert isinstance(resumed.step(ev.RunFailed(1, "RESOURCE_EXHAUSTED", "full"), 1.0)[0], fx.RunLost)


def test_patience_ends_with_what_is_missing_and_begins_anew_with_a_token() -> None:
    request = machine()
    request.step(LOADING, 0.0)
    request.step(ready(TWO), 8.0)
    request.step(ev.RunFailed(1, "NOT_READY", "loading"), 8.5)
    request.step(ev.PlanPending(None, "DOES_NOT_FIT", "3 GB too little", "d"), 8.5)
    assert request.next_deadline() == 10.5  # 8 s were waited before
    [end] = request.step(ev.Tick(), 10.5)
    assert isinstance(end, fx.Failed)
    assert end.reason == "DOES_NOT_FIT"
    assert "10 s" in end.message
    assert "3 GB too little" in end.message

    request = machine()
    request.step(LOADING, 0.0)
    request.step(ready(TWO), 8.0)
    request.step(ev.Token(1, 0, 40), 30.0)  # a long prompt costs no patience
    request.step(ev.RunFailed(1, "WORKER_FAILED", "it ended"), 31.0)
    request.step(LOADING, 31.0)
    assert request.next_deadline() == 41.0
    assert request.step(ev.Tick(), 40.9) == []


def test_a_request_that_no_longer_fits_fails_with_the_number() -> None:
    request = running(max_tokens=90)
    request.step(ev.Token(1, 0, 40), 1.0)
    *_, end = request.step(ready(TWO, context=92), 2.0)
    assert isinstance(end, fx.Failed)
    assert end.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert end.facts == {"prompt_tokens": "3", "max_tokens": "90", "context_tokens": "92"}


def test_a_request_up_to_the_context_takes_the_smaller_of_two() -> None:
    request = running(max_tokens=0)
    request.step(ev.Token(1, 0, 40), 1.0)
    *_, run = request.step(ready(TWO, context=50), 2.0)
    assert run == fx.Run(2, TWO, "a", PROMPT, (40,), 47)
    *_, run = request.step(ready(Epoch(1, 2, 1), context=100), 3.0)
    assert isinstance(run, fx.Run)
    assert run.max_tokens == 47
    *_, end = request.step(ready(Epoch(1, 2, 2), context=4), 4.0)
    assert isinstance(end, fx.Failed)


@pytest.mark.parametrize(("index", "token"), [(2, 50), (0, 41)])
def test_tokens_out_of_order_end_the_request(index: int, token: int) -> None:
    request = running()
    request.step(ev.Token(1, 0, 40), 1.0)
    assert request.step(ev.Token(1, 0, 40), 1.1) == []
    cancel, end = request.step(ev.Token(1, index, token), 1.2)
    assert cancel == fx.CancelRun(1)
    assert isinstance(end, fx.Failed)
    assert end.reason == "INTERNAL"


def test_ends_of_the_clients_and_of_the_text() -> None:
    assert running().step(ev.ClientGone(), 1.0) == [fx.CancelRun(1), fx.Cancelled()]
    assert machine().step(ev.ClientGone(), 1.0) == [fx.Cancelled()]
    request = running()
    request.step(ev.Token(1, 0, 40), 1.0)
    assert request.step(ev.TextStopped(), 1.0) == [fx.CancelRun(1), fx.Finished(Finish.STOP)]


def test_a_model_that_is_gone_ends_the_request() -> None:
    request = running()
    assert request.step(ev.PlanWithdrawn("NO_MODEL_LOADED", "unloaded"), 1.0) == [
        fx.CancelRun(1),
        fx.Failed("NO_MODEL_LOADED", "unloaded"),
    ]
    request = running()
    [_, end] = request.step(ready(TWO, digest="other"), 1.0)
    assert isinstance(end, fx.Failed)
    assert end.reason == "NO_MODEL_LOADED"


def test_a_resumed_request_runs_behind_what_the_client_brought() -> None:
    assert machine(generated=(40, 41)).step(ready(), 0.0) == [fx.Run(1, ONE, "a", PROMPT, (40, 41), 5)]


@pytest.mark.parametrize(
    ("generated", "finish"), [((40, 2), Finish.STOP), ((40, 41, 42, 43, 44), Finish.LENGTH)]
)
def test_a_resumed_request_that_lacks_only_its_end_needs_no_plan(
    generated: tuple[int, ...], finish: Finish
) -> None:
    assert machine(generated=generated).step(LOADING, 0.0) == [fx.Finished(finish)]


def test_what_a_plan_lacks_was_heard_while_the_run_went_on_and_is_told_when_that_is_lost() -> None:
    request = running()
    request.step(ev.Token(1, 0, 40), 1.0)
    assert request.step(ev.PlanPending(ONE, "DOES_NOT_FIT", "3 GB too little", "d"), 2.0) == []
    assert request.step(ev.RunFailed(1, "WORKER_FAILED", "it ended"), 3.0) == [
        fx.RunLost(1, ONE, "WORKER_FAILED", "it ended"),
        fx.TellPaused("DOES_NOT_FIT", "3 GB too little"),
    ]
    assert request.step(ev.PlanPending(ONE, "DOES_NOT_FIT", "3 GB too little", "d"), 3.5) == []
    [end] = request.step(ev.Tick(), 13.0)
    assert isinstance(end, fx.Failed)
    assert end.reason == "DOES_NOT_FIT"

    # A plan that was ready in between lacks nothing any more.
    request = running()
    request.step(ev.PlanPending(ONE, "NO_QUORUM", "nobody is there", "d"), 1.0)
    request.step(ready(), 2.0)
    assert request.step(ev.RunFailed(1, "WORKER_FAILED", "it ended"), 3.0)[1:] == [
        fx.TellPaused("WORKER_FAILED", "it ended")
    ]


@pytest.mark.parametrize("hears_first", [True, False])
def test_the_facts_of_a_lost_run_are_not_told_with_what_the_plan_lacks(hears_first: bool) -> None:
    request = running()
    lacking = ev.PlanPending(ONE, "DOES_NOT_FIT", "3 GB too little", "d")
    failed = ev.RunFailed(1, "PEER_UNREACHABLE", "it is silent", {"node": "b"})
    for event in (lacking, failed) if hears_first else (failed, lacking):
        request.step(event, 1.0)
    [end] = request.step(ev.Tick(), 11.0)
    assert isinstance(end, fx.Failed)
    assert (end.reason, dict(end.facts)) == ("DOES_NOT_FIT", {})
    assert end.message == "the request has waited 10 s for stages to run it: 3 GB too little"
