"""A deadline for waits that nothing can interrupt."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class StallWatch:
    """Watches waits in native code from a thread of its own.

    Native code that waits cannot be interrupted from Python, so a passed deadline can only end the process;
    that is what ``on_stall`` is for. Works only while the waiting code has released the interpreter's lock.

    Args:
        on_stall: called once, from the watching thread, with what was waited for and for how long.
    """

    def __init__(self, on_stall: Callable[[str], None]) -> None:
        self._on_stall = on_stall
        self._condition = threading.Condition()
        self._deadline: float | None = None
        self._what = ""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="stall-watch", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def limit(self, seconds: float, what: str) -> Iterator[None]:
        """Calls ``on_stall`` where the body takes longer. One wait at a time; not to be nested."""
        with self._condition:
            self._deadline = time.monotonic() + seconds
            self._what = f"{what} took longer than {seconds:g} s"
            self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                self._deadline = None

    def close(self) -> None:
        """Ends the watching thread; harmless when repeated."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while (what := self._next_stall()) is not None:
            self._on_stall(what)

    def _next_stall(self) -> str | None:
        with self._condition:
            while not self._closed:
                if self._deadline is None:
                    self._condition.wait()
                elif (left := self._deadline - time.monotonic()) > 0:
                    self._condition.wait(left)
                else:
                    self._deadline = None
                    return self._what
            return None
