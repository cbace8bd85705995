"""The thread that touches mlx, for as long as the process lives, and what it keeps from epoch to epoch."""

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macmesh_daemon.worker.memory_limits import MemoryLimits
    from macmesh_daemon.worker.warm_up import Warmth


class ResidentThread:
    """Runs the inference of one epoch after the other on one thread: MLX binds streams and arrays to threads."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # A daemon thread: a wait in native code must not keep the process alive.
        self._thread = threading.Thread(target=self._turn, name="inference", daemon=True)
        self.limits: MemoryLimits | None = None
        """Of MLX; made once mlx is imported."""
        self.warmth: Warmth | None = None
        """What was warmed up; likewise."""

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on it."""
        return threading.current_thread() is self._thread

    def run(self, work: Callable[[], None]) -> None:
        """Runs ``work`` once what was given before has ended. It must not raise."""
        if not self._thread.is_alive():
            self._thread.start()
        self._work.put(work)

    def _turn(self) -> None:
        while True:
            work = self._work.get()
            work()
            del work  # holds what the epoch was made of
