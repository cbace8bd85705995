"""When mDNS announces, browses and rebinds: a pure decision, repeated every tick.

python-zeroconf announces a service when it is registered and asks for others in the first seconds of a
browser; after that it only keeps what it knows. Whoever was cut off in that time stays unknown. So the same
beat announces again and begins a new browser, which asks again and reports anew what is already known.
"""

import enum
import random
from collections.abc import Hashable
from dataclasses import dataclass, field

JITTER = 0.2


class Action(enum.Enum):
    """What the shell has to do now, in this order."""

    #: The addresses changed: bind to the new set.
    REBIND = "rebind"
    #: Send the announcement.
    ANNOUNCE = "announce"
    #: Begin a new browser.
    BROWSE = "browse"


@dataclass(slots=True)
class BeatSchedule:
    """Decides per tick; the caller ticks at least every ``poll_seconds`` or when ``next_tick_in`` says."""

    announce_interval_seconds: float
    lonely_interval_seconds: float
    poll_seconds: float
    rng: random.Random
    _interfaces: Hashable = None
    _next_beat_at: float = field(default=float("-inf"))
    _was_lonely: bool = True

    def started(self, now: float, interfaces: Hashable) -> None:
        """Note that the service was registered and a browser begun on ``interfaces`` at ``now``."""
        self._interfaces = interfaces
        self._was_lonely = True
        self._next_beat_at = now + self._interval(lonely=True)

    def tick(
        self, now: float, *, interfaces: Hashable, lonely: bool, refresh: bool = False
    ) -> tuple[Action, ...]:
        """Return what to do at ``now``.

        Args:
            now: Seconds of a clock that counts sleep, so that a beat is due right after waking up.
            interfaces: The choice of interfaces at this moment.
            lonely: Whether no peer is known.
            refresh: Whether a beat was asked for.
        """
        changed = interfaces != self._interfaces
        if lonely and not self._was_lonely:
            # Do not sit out what is left of the longer interval.
            self._next_beat_at = min(self._next_beat_at, now + self._interval(lonely=True))
        self._was_lonely = lonely
        if not (changed or refresh or now >= self._next_beat_at):
            return ()
        self._interfaces = interfaces
        self._next_beat_at = now + self._interval(lonely=lonely)
        beat = (Action.ANNOUNCE, Action.BROWSE)
        return (Action.REBIND, *beat) if changed else beat

    def next_tick_in(self, now: float) -> float:
        """Return the seconds until the next tick, at most ``poll_seconds``."""
        return max(0.0, min(self.poll_seconds, self._next_beat_at - now))

    def _interval(self, *, lonely: bool) -> float:
        base = self.lonely_interval_seconds if lonely else self.announce_interval_seconds
        return base * self.rng.uniform(1 - JITTER, 1 + JITTER)
