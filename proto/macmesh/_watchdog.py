"""One thread that cancels sync streams that wait too long: gRPC's own deadline covers only a whole call."""

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls a function when a wait passes its deadline.

    The thread starts with the first `arm` and ends with `close`. Moving a deadline later, which happens once
    per token, wakes nobody.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._changed = threading.Condition()
        self._waits: dict[int, tuple[float, Callable[[], None]]] = {}
        self._wake_at = float("inf")
        self._thread: threading.Thread | None = None
        self._closed = False

    def arm(self, key: int, seconds: float, expire: Callable[[], None]) -> None:
        """Call expire once, from the watchdog's thread, unless `disarm` comes within seconds."""
        with self._changed:
            if self._closed:
                return
            deadline = self._now() + seconds
            self._waits[key] = (deadline, expire)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="macmesh-watchdog", daemon=True)
                self._thread.start()
            elif deadline < self._wake_at:
                self._changed.notify()

    def disarm(self, key: int) -> None:
        """Forget a wait."""
        with self._changed:
            self._waits.pop(key, None)

    def close(self) -> None:
        """End the thread; every wait is forgotten."""
        with self._changed:
            self._closed = True
            self._waits.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = self._now()
                due = [(key, expire) for key, (deadline, expire) in self._waits.items() if deadline <= now]
                for key, _ in due:
                    del self._waits[key]
                if not due:
                    self._wake_at = min((d for d, _ in self._waits.values()), default=float("inf"))
                    self._changed.wait(min(self._wake_at - now, threading.TIMEOUT_MAX))
                    self._wake_at = float("inf")
            for _, expire in due:
                expire()
