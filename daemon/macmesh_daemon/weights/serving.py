"""How fast this node gives weights away: all that the network takes while it is idle, less while it serves."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final

from macmesh_daemon.weights.errors import RemoteSourceBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from macmesh_daemon.clock import Clock

#: Streams to one node at once; one more is told to come again.
STREAMS_PER_PEER: Final = 4
#: Streams to all nodes at once.
STREAMS: Final = 16
#: A bucket holds what flows in this time.
_BURST_SECONDS: Final = 0.25


class TokenBucket:
    """Bounds a rate over time. Pure.

    Args:
        bytes_per_second: The rate.
        now: The present.
    """

    def __init__(self, bytes_per_second: float, now: float) -> None:
        self._rate = bytes_per_second
        self._most = bytes_per_second * _BURST_SECONDS
        self._tokens = self._most
        self._at = now

    def take(self, count: int, now: float) -> float:
        """Take so many bytes out; seconds to wait before they may be sent.

        The bucket may be left below zero: whoever comes next waits for that too.
        """
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)


class ServingLimits:
    """Counts the streams of each caller, and slows all of them down together while requests are served.

    Args:
        bytes_per_second: Most that is sent while requests are served; 0 for no limit.
        is_serving: Whether they are, now.
        clock: Time.
    """

    def __init__(self, bytes_per_second: int, is_serving: Callable[[], bool], clock: Clock) -> None:
        self._rate = bytes_per_second
        self._is_serving = is_serving
        self._clock = clock
        self._bucket: TokenBucket | None = None
        self._streams: Counter[str] = Counter()

    @property
    def is_busy(self) -> bool:
        """Whether requests are served now."""
        return self._is_serving()

    @contextlib.contextmanager
    def stream(self, caller: str) -> Iterator[None]:
        """Count a stream for as long as the context lasts.

        Raises:
            RemoteSourceBusyError: there are as many as there may be.
        """
        if self._streams[caller] >= STREAMS_PER_PEER or self._streams.total() >= STREAMS:
            raise RemoteSourceBusyError(
                f"this node sends {self._streams.total()} streams of weights, {self._streams[caller]} of them to "
                "the caller; ask again"
            )
        self._streams[caller] += 1
        try:
            yield
        finally:
            self._streams[caller] -= 1
            if not self._streams[caller]:
                del self._streams[caller]

    async def pace(self, count: int) -> None:
        """Return when so many bytes may be sent."""
        if self._rate <= 0 or not self._is_serving():
            self._bucket = None
            return
        now = self._clock.now()
        if self._bucket is None:
            self._bucket = TokenBucket(self._rate, now)
        wait = self._bucket.take(count, now)
        if wait > 0:
            await self._clock.sleep(wait)
