"""The node's watch over itself: did its machine sleep, or did it get no processor?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.clock import ClockReading, detect_interruption

if TYPE_CHECKING:
    from collections.abc import Callable

    from macmesh_daemon.clock import Clock, Interruption

#: How often the node looks; the heartbeat's own period.
WATCH_INTERVAL_SECONDS = 0.25


async def watch_interruptions(clock: Clock, looked: Callable[[Interruption | None], None]) -> None:
    """Look four times a second, and tell what was seen each time, until cancelled."""
    previous = ClockReading.take(clock)
    while True:
        await clock.sleep(WATCH_INTERVAL_SECONDS)
        current = ClockReading.take(clock)
        found = detect_interruption(previous, current, interval_seconds=WATCH_INTERVAL_SECONDS)
        previous = current
        looked(found)
