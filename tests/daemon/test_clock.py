import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.clock import (
    Clock,
    ClockReading,
    Interruption,
    ManualClock,
    SystemClock,
    detect_interruption,
    sleep_or_event,
)


async def drive(clock: Clock, seconds: float) -> None:
    """Let time pass on either clock."""
    if isinstance(clock, ManualClock):
        await clock.advance(seconds)
    else:
        await asyncio.sleep(seconds)


@pytest.fixture(params=["system", "manual"])
def clock(request: pytest.FixtureRequest) -> Clock:
    return SystemClock() if request.param == "system" else ManualClock()


async def test_a_sleeper_wakes_after_its_time_and_not_before(clock: Clock) -> None:
    started = clock.now()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(clock.sleep(0.02))
        await drive(clock, 0.005)
        # A busy machine may have let more time pass.
        assert not task.done() or clock.now() - started >= 0.02
        await drive(clock, 0.03)
        await task
    assert clock.now() - started >= 0.02


async def test_readings_never_go_back_and_both_clocks_run(clock: Clock) -> None:
    before = ClockReading.take(clock)
    await drive(clock, 0.01)
    after = ClockReading.take(clock)
    assert after.now - before.now >= 0.01 - 1e-6
    assert after.awake_now - before.awake_now >= 0.01 - 1e-6


async def test_a_sleep_that_is_not_positive_gives_others_a_turn(clock: Clock) -> None:
    ran: list[str] = []

    async def other() -> None:
        ran.append("other")

    async with asyncio.TaskGroup() as group:
        group.create_task(other())
        await clock.sleep(0)
        assert ran == ["other"]
        await clock.sleep(-1)


async def test_manual_sleepers_wake_in_the_order_of_their_times() -> None:
    clock = ManualClock()
    woken: list[tuple[float, float]] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.now() - 1000.0))

    async with asyncio.TaskGroup() as group:
        for seconds in (3.0, 1.0, 2.0):
            group.create_task(sleeper(seconds))
        await clock.settle()
        assert clock.sleeper_count == 3
        await clock.advance(10)
    assert woken == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert clock.now() == 1010.0


async def test_sleepers_do_not_wake_while_the_machine_sleeps() -> None:
    clock = ManualClock()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(clock.sleep(1))
        await clock.settle()
        clock.suspend(3600)
        await clock.settle()
        assert not task.done()
        await clock.advance(1)
        assert task.done()


async def test_an_event_ends_a_sleep_early() -> None:
    clock = ManualClock()
    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sleep_or_event(clock, 60, event))
        await clock.settle()
        event.set()
        assert await task is True
        assert not event.is_set()
        task = group.create_task(sleep_or_event(clock, 60, event))
        await clock.advance(60)
        assert await task is False


def test_the_system_clock_counts_like_the_clock_that_includes_sleep() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = SystemClock().now()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)


seconds = st.floats(0, 1e6, allow_nan=False)


@given(base=seconds, interval=st.floats(0.01, 10), late=st.floats(0, 1e5), asleep=st.floats(0, 1e5))
def test_an_interruption_is_told_by_which_clock_jumped(
    base: float, interval: float, late: float, asleep: float
) -> None:
    previous = ClockReading(now=base * 2, awake_now=base)
    current = ClockReading(now=base * 2 + interval + late + asleep, awake_now=base + interval + late)
    found = detect_interruption(previous, current, interval_seconds=interval)
    slack = 1e-6  # of floating point
    if asleep > 1 + slack:
        assert found is Interruption.SLEPT
    elif asleep < 1 - slack and late > 1 + slack:
        assert found is Interruption.STARVED
    elif asleep < 1 - slack and late < 1 - slack:
        assert found is None
