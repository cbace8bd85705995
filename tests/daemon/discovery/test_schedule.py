import random

from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.discovery.schedule import Action, BeatSchedule

BEAT = (Action.ANNOUNCE, Action.BROWSE)


def schedule(seed: int = 1) -> BeatSchedule:
    made = BeatSchedule(15.0, 5.0, 2.0, random.Random(seed))  # noqa: S311  a test's own
    made.started(0.0, "if")
    return made


@given(st.integers(), st.booleans())
def test_beats_keep_their_distance(seed: int, lonely: bool) -> None:
    beats = schedule(seed)
    low, high = (4.0, 6.0) if lonely else (12.0, 18.0)
    now = last = 0.0
    first = True
    while now < 200:
        now += beats.next_tick_in(now)
        if beats.tick(now, interfaces="if", lonely=lonely):
            if not first:
                assert low <= now - last <= high + 0.001
            first, last = False, now


@given(st.integers())
def test_ticks_never_stop_and_never_wait_longer_than_the_poll(seed: int) -> None:
    beats = schedule(seed)
    now = 0.0
    for _ in range(100):
        delay = beats.next_tick_in(now)
        assert 0 <= delay <= 2.0
        now += delay
        beats.tick(now, interfaces="if", lonely=False)
        assert beats.next_tick_in(now) > 0


def test_a_change_of_interfaces_rebinds_before_it_announces_and_only_once() -> None:
    beats = schedule()
    assert beats.tick(1.0, interfaces="other", lonely=False) == (Action.REBIND, *BEAT)
    assert beats.tick(2.0, interfaces="other", lonely=False) == ()


def test_a_wish_is_a_beat_at_once() -> None:
    beats = schedule()
    assert beats.tick(0.1, interfaces="if", lonely=False, refresh=True) == BEAT
    assert beats.tick(0.2, interfaces="if", lonely=False) == ()


def test_one_who_becomes_lonely_does_not_wait_for_the_long_beat() -> None:
    beats = schedule()
    assert beats.tick(7.0, interfaces="if", lonely=False) == BEAT  # the next is due at 19 or later
    assert beats.tick(8.0, interfaces="if", lonely=True) == ()
    assert beats.tick(14.1, interfaces="if", lonely=True) == BEAT
