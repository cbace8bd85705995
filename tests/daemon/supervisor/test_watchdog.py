"""The watchdog's decisions, in virtual time."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.supervisor.watchdog import Watchdog, WatchLimits, judge
from macmesh_rdma.messages.progress_page import Activity, Reading

LIMITS = WatchLimits.of_step_deadline(40)
STEP = Reading(sequence=9, activity=Activity.STEP, step=57, layer=12)


@pytest.mark.parametrize(
    ("activity", "seconds"),
    [(Activity.STEP, 30.0), (Activity.WAITING, 45.0), (Activity.WARMING_UP, 100.0)],
)
def test_limits(activity: Activity, seconds: float) -> None:
    reading = replace(STEP, activity=activity)
    assert judge(reading, 100.0, 100.0 + seconds - 0.01, LIMITS) is None
    assert judge(reading, 100.0, 100.0 + seconds, LIMITS) is not None


@pytest.mark.parametrize("activity", [Activity.STARTING, Activity.IDLE, Activity.UNKNOWN])
def test_some_things_may_take_any_time(activity: Activity) -> None:
    assert judge(replace(STEP, activity=activity), 0.0, 1e9, LIMITS) is None


def test_a_stage_that_hangs_is_told_before_the_others_give_up() -> None:
    assert LIMITS.step_seconds < 40 < LIMITS.waiting_seconds


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (STEP, "in step 57, after layer 12: nothing moved for 31.0 s"),
        (replace(STEP, layer=None), "in step 57: nothing"),
        (replace(STEP, step=0, layer=None), "before its first step"),
        (replace(STEP, activity=Activity.WARMING_UP), "in its warm-up, after layer 12"),
        (replace(STEP, activity=Activity.WAITING), "in step 57, where it waits for another stage"),
    ],
)
def test_the_reason_names_the_place(reading: Reading, words: str) -> None:
    why = judge(reading, 0.0, 31.0, WatchLimits(1, 1, 1))
    assert why is not None
    assert words in why


def test_layers_are_progress() -> None:
    dog = Watchdog(LIMITS, most_gap_seconds=30)
    for number in range(10):
        assert dog.look(replace(STEP, sequence=number, layer=number), now=29.0 * number) is None
    assert dog.look(replace(STEP, sequence=9, layer=9), now=29.0 * 9 + 30) is not None


def test_a_daemon_that_did_not_look_blames_nobody() -> None:
    dog = Watchdog(LIMITS, most_gap_seconds=2)
    assert dog.look(STEP, 0.0) is None
    assert dog.look(STEP, 1000.0) is None  # it was stopped itself: two seconds count
    for second in range(1001, 1028):
        assert dog.look(STEP, float(second)) is None
    assert dog.look(STEP, 1028.0) is not None


@given(
    st.lists(st.tuples(st.floats(0.01, 1.9), st.booleans()), max_size=120),
    st.sampled_from([Activity.STEP, Activity.WAITING]),
)
def test_it_barks_exactly_when_nothing_moved_for_the_limit(
    looks: list[tuple[float, bool]], activity: Activity
) -> None:
    limits = WatchLimits(step_seconds=10, waiting_seconds=20)
    dog = Watchdog(limits, most_gap_seconds=2)
    reading, now, changed = replace(STEP, activity=activity), 0.0, 0.0
    dog.look(reading, now)
    for gap, moves in looks:
        now += gap
        if moves:
            reading, changed = replace(reading, sequence=reading.sequence + 1), now
        limit = limits.of(activity)
        assert limit is not None
        assert (dog.look(reading, now) is not None) == (now - changed >= limit)
