"""Whether a worker's inference thread hangs, judged by its progress page alone. Pure: no clock of its own."""

from dataclasses import dataclass
from typing import Self

from macmesh_rdma.messages.progress_page import Activity, Reading

STEP_SHARE = 0.75
"""Of a step's deadline. The stages beside one that hangs give up at the deadline, and know only that nothing came:
the daemon of the stage that hangs must be quicker, for its word to be the reason."""
WAITING_GRACE_SECONDS = 5.0
"""A wait for another stage ends itself at the step's deadline."""
WARM_UP_SECONDS = 100.0
"""Kernels are compiled in it: on CUDA a minute where none was kept from before. The coordinator gives a load up that
makes no progress for 120 s, and does not know where it hangs."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How long a thread may stay where it is, by what it does."""

    step_seconds: float
    waiting_seconds: float
    warm_up_seconds: float = WARM_UP_SECONDS

    @classmethod
    def of_step_deadline(cls, deadline_seconds: float) -> Self:
        """Those of a plan whose steps have this deadline."""
        return cls(
            step_seconds=STEP_SHARE * deadline_seconds,
            waiting_seconds=deadline_seconds + WAITING_GRACE_SECONDS,
        )

    def of(self, activity: Activity) -> float | None:
        """Seconds that a thread may do this without a change; None: any time."""
        return {
            Activity.STEP: self.step_seconds,
            Activity.WAITING: self.waiting_seconds,
            Activity.WARMING_UP: self.warm_up_seconds,
        }.get(activity)

    @property
    def shortest_seconds(self) -> float:
        """The least of them."""
        return min(self.step_seconds, self.waiting_seconds, self.warm_up_seconds)


def judge(last: Reading, changed_at: float, now: float, limits: WatchLimits) -> str | None:
    """Why the thread hangs, for people; None where it may yet move.

    Args:
        last: where the thread stood at the last look.
        changed_at: when it was first seen there, in seconds.
        now: on the same clock.
        limits: how long it may stay.
    """
    limit_seconds = limits.of(last.activity)
    if limit_seconds is None or now - changed_at < limit_seconds:
        return None
    return f"its inference thread hangs {_place(last)}: nothing moved for {now - changed_at:.1f} s"


class Watchdog:
    """Follows one worker's page.

    Time in which this process itself did not look, because it was stopped or starved, is not held against the worker:
    between two looks at most `most_gap_seconds` count.

    Args:
        limits: see there.
        most_gap_seconds: a good deal more than the distance of the looks.
    """

    def __init__(self, limits: WatchLimits, *, most_gap_seconds: float) -> None:
        self._limits = limits
        self._most_gap_seconds = most_gap_seconds
        self._last: Reading | None = None
        self._changed_at = 0.0
        self._looked_at = 0.0

    def look(self, reading: Reading, now: float) -> str | None:
        """Takes what the page shows now; the reason where the thread hangs."""
        if self._last is None or reading != self._last:
            self._last, self._changed_at = reading, now
        else:
            self._changed_at += max(0.0, now - self._looked_at - self._most_gap_seconds)
        self._looked_at = now
        return judge(reading, self._changed_at, now, self._limits)


def _place(reading: Reading) -> str:
    after = "" if reading.layer is None else f", after layer {reading.layer}"
    if reading.activity is Activity.WARMING_UP:
        return f"in its warm-up{after}"
    if reading.step == 0:
        return "before its first step"
    if reading.activity is Activity.WAITING:
        return f"in step {reading.step}, where it waits for another stage"
    return f"in step {reading.step}{after}"
