"""An asyncio event loop in virtual time: unchanged asyncio code, no waiting, the same order every time.

Time jumps to the next timer as soon as nothing can run. What would wait for ever raises `VirtualDeadlockError`.
Threads of executors are run on the spot; sockets, pipes and processes do not work here.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


T = TypeVar("T")


class VirtualDeadlockError(RuntimeError):
    """Everything waits, and nothing is due."""


class _Selector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.passed_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise VirtualDeadlockError("everything waits, and nothing is due")
        self.passed_seconds += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.passed_seconds

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run it now; it takes no virtual time."""
        del executor
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  the awaiting task gets it
            future.set_exception(error)
        return future


class LoopClock:
    """A `Clock` that shows the running loop's time; the machine can be put to sleep."""

    def __init__(self, start_seconds: float = 1000.0) -> None:
        self._start = start_seconds
        self._slept = 0.0

    def now(self) -> float:
        return self._start + self._slept + asyncio.get_running_loop().time()

    def awake_now(self) -> float:
        return self._start + asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 0.0))

    def suspend(self, seconds: float) -> None:
        """Let the machine sleep: `now` moves, `awake_now` and timers do not."""
        self._slept += seconds


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time.

    Raises:
        VirtualDeadlockError: it waits for something that never comes.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
