"""Time for decisions: a clock that counts sleep, one that does not, and what their difference says.

Wall-clock time never decides anything in the cluster: it jumps. Two monotonic clocks do:

* ``now()`` goes on while the machine sleeps, so a lease that ran out during sleep has run out.
* ``awake_now()`` stands still while the machine sleeps.

Between two readings, ``now`` gaining on ``awake_now`` means that the machine slept; ``awake_now`` itself
jumping means that the process got no CPU or its event loop was blocked.
"""

import asyncio
import enum
import heapq
import itertools
import sys
import time
from dataclasses import dataclass
from typing import Protocol

if sys.platform == "darwin":
    # mach_continuous_time; time.monotonic() is mach_absolute_time, which stops in sleep.
    _CONTINUOUS_CLOCK = time.CLOCK_MONOTONIC_RAW
else:
    _CONTINUOUS_CLOCK = time.CLOCK_BOOTTIME


class Clock(Protocol):
    """What the daemon knows of time. All readings are seconds from an arbitrary start, never decreasing."""

    def now(self) -> float:
        """Seconds including time asleep: for leases, deadlines and liveness."""
        ...

    def awake_now(self) -> float:
        """Seconds without time asleep: for telling sleep from starvation."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once ``seconds`` have passed; at once (after one loop turn) where they are not positive."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Seconds of ``CLOCK_MONOTONIC_RAW`` (macOS) or ``CLOCK_BOOTTIME`` (Linux)."""
        return time.clock_gettime(_CONTINUOUS_CLOCK)

    def awake_now(self) -> float:
        """Seconds of ``time.monotonic()``."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep in the running event loop. The loop's timer stands still while the machine sleeps."""
        await asyncio.sleep(max(seconds, 0.0))


class ManualClock:
    """A clock that moves only when it is told to, for tests in virtual time.

    Keeps the contract of ``Clock``. Sleepers wake in the order of their wake times, then of their calls.
    """

    def __init__(self, start_seconds: float = 1000.0) -> None:
        self._now = start_seconds
        self._awake = start_seconds
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        """The told time, sleep included."""
        return self._now

    def awake_now(self) -> float:
        """The told time, sleep excluded."""
        return self._awake

    async def sleep(self, seconds: float) -> None:
        """Return once ``advance`` has passed ``seconds`` of awake time."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._awake + seconds, next(self._order), future))
        await future

    @property
    def sleeper_count(self) -> int:
        """How many tasks sleep on this clock."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def settle(self, turns: int = 50) -> None:
        """Let tasks that can run do so: ``turns`` turns of the event loop, no time passes."""
        for _ in range(turns):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass awake, waking each sleeper at its own time and letting it run."""
        target = self._awake + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            wake_at, _, future = heapq.heappop(self._sleepers)
            self._move(max(wake_at - self._awake, 0.0))
            if not future.done():
                future.set_result(None)
            await self.settle()
        self._move(target - self._awake)

    def suspend(self, seconds: float) -> None:
        """Let the machine sleep for ``seconds``: ``now`` moves, ``awake_now`` and the sleepers do not."""
        self._now += seconds

    def _move(self, seconds: float) -> None:
        self._now += seconds
        self._awake += seconds


async def sleep_or_event(clock: Clock, seconds: float, event: asyncio.Event) -> bool:
    """Sleep until ``seconds`` have passed or ``event`` is set; returns whether it is set, and clears it."""
    if not event.is_set() and seconds > 0:
        async with asyncio.TaskGroup() as group:
            sleeper = group.create_task(clock.sleep(seconds), name="sleep")
            waiter = group.create_task(event.wait(), name="event")
            await asyncio.wait({sleeper, waiter}, return_when=asyncio.FIRST_COMPLETED)
            sleeper.cancel()
            waiter.cancel()
    was_set = event.is_set()
    event.clear()
    return was_set


@dataclass(frozen=True, slots=True)
class ClockReading:
    """Both clocks at one moment, in seconds."""

    now: float
    awake_now: float

    @classmethod
    def take(cls, clock: Clock) -> "ClockReading":
        """Read both clocks."""
        return cls(now=clock.now(), awake_now=clock.awake_now())


class Interruption(enum.Enum):
    """Why a periodic task ran later than it asked to."""

    SLEPT = "slept"
    STARVED = "starved"


def detect_interruption(
    previous: ClockReading, current: ClockReading, *, interval_seconds: float, tolerance_seconds: float = 1.0
) -> Interruption | None:
    """Say whether the machine slept or the process starved between two readings of a periodic task.

    Args:
        previous: The reading when the task went to sleep.
        current: The reading when it ran again.
        interval_seconds: How long it asked to sleep.
        tolerance_seconds: Lateness that is still normal.

    Returns:
        ``SLEPT`` where the clock that counts sleep gained more than the tolerance on the one that does not
        (this wins when both are true, since it needs the same answer and more), ``STARVED`` where the awake
        time is late by more than the tolerance, else None.
    """
    elapsed = current.now - previous.now
    awake = current.awake_now - previous.awake_now
    if elapsed - awake > tolerance_seconds:
        return Interruption.SLEPT
    if awake - interval_seconds > tolerance_seconds:
        return Interruption.STARVED
    return None
