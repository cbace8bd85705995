"""Transfers beside the inference thread, which computes meanwhile. Imports mlx.

One thread of its own makes one call at a time. What is sent later waits for it, so the order on a link is that of the
calls. MLX itself is used on the inference thread alone: the other one moves memory that is evaluated already.
"""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import mlx.core as mx

from macmesh_daemon.worker.transfers import Transfers

Waiting = Callable[[], contextlib.AbstractContextManager[None]]
"""Is entered while this stage waits for another one, with a deadline."""
Result = TypeVar("Result")
CLOSE_SECONDS = 2.0
"""For a call whose transfers were aborted to end."""


@dataclasses.dataclass(slots=True)
class _Call(Generic[Result]):
    work: Callable[[], Result] | None
    result: Result | None = None
    error: Exception | None = None
    ended: threading.Event = dataclasses.field(default_factory=threading.Event)


class Beside(Generic[Result]):
    """A thread that makes one call at a time for another one.

    Args:
        name: of the thread.
        failed: is told the error of a call, from that thread, before `end` raises it.
    """

    def __init__(self, name: str, failed: Callable[[Exception], None] = lambda _error: None) -> None:
        self._name = name
        self._failed = failed
        self._calls: queue.SimpleQueue[_Call[Result] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._call: _Call[Result] | None = None

    @property
    def busy(self) -> bool:
        """Whether there is a call whose end has not been taken."""
        return self._call is not None

    def begin(self, work: Callable[[], Result]) -> None:
        """Lets the thread make a call that has a deadline of its own; the one before must have been ended."""
        if self._call is not None:
            raise ValueError(f"{self._name} has a call whose end was not taken")
        if self._thread is None:
            # A daemon thread: a wait in native code must not keep the process alive.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._call = _Call(work)
        self._calls.put(self._call)

    def end(self) -> Result:
        """What the call returned, or raised; waits for it.

        Raises:
            LookupError: there is none.
        """
        if self._call is None:
            raise LookupError(f"{self._name} was given nothing to do")
        self._call.ended.wait()
        call, self._call = self._call, None
        # Here, and not where the other thread drops it: what it holds may be arrays.
        call.work = None
        if call.error is not None:
            raise call.error
        result: Result = call.result  # type: ignore[assignment]  # a call without an error has returned
        return result

    def close(self) -> None:
        """Ends the thread, which holds its owner; harmless when repeated. The call under way ends first."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._calls.put(None)
            thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._make(call)
            del call  # holds what was handed on, until the next one comes

    def _make(self, call: _Call[Result]) -> None:
        try:
            if call.work is not None:
                call.result = call.work()
        except Exception as error:  # noqa: BLE001  raised again by `end`
            call.error = error
            self._failed(error)
        finally:
            call.ended.set()


class Sender:
    """Hands a step's output on: at once, or beside what is computed next.

    Args:
        transfers: to the next stage. Where the host fills memory it can do so beside; other lanes queue what they
            send on streams of the calling thread, which costs it little.
        waiting: entered while the thread waits for an earlier send, or for this one.
        failed: is told what a send beside failed with, from another thread.
    """

    def __init__(
        self,
        transfers: Transfers,
        waiting: Waiting,
        failed: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        self._transfers = transfers
        self._waiting = waiting
        self._thread: Beside[None] = Beside("sender", failed)

    def send(self, number: int, arrays: Sequence[mx.array]) -> None:
        """Returns when the arrays may be used again."""
        with self._waiting():
            self._flush()
            self._transfers.send(number, arrays)

    def send_beside(self, number: int, arrays: Sequence[mx.array]) -> None:
        """Returns when what was sent before has gone; keeps the arrays, which nothing may change any more.

        Raises:
            TransportError: of what was sent before.
        """
        if not self._transfers.fills:
            self.send(number, arrays)
            return
        for array in arrays:
            _bring_within_reach(array)
        if self._thread.busy:
            with self._waiting():
                self._flush()
        self._thread.begin(partial(self._transfers.send, number, list(arrays)))

    def close(self) -> None:
        """Ends the thread beside, once the transfers are aborted."""
        self._thread.close()

    def _flush(self) -> None:
        if self._thread.busy:
            self._thread.end()


class Receiver:
    """Takes a step's input in, also while an earlier step is computed.

    Args:
        transfers: from the stage before.
        waiting: entered while the thread waits.
    """

    def __init__(self, transfers: Transfers, waiting: Waiting) -> None:
        self._transfers = transfers
        self._waiting = waiting
        self._thread: Beside[list[mx.array]] = Beside("receiver")

    @property
    def ahead(self) -> bool:
        """Whether the next input is taken in already."""
        return self._thread.busy

    def receive_ahead(self, number: int) -> None:
        """Begins to take in what comes next, which must be the input of this step; `receive` gives it."""
        if self._transfers.fills and not self._thread.busy:
            self._thread.begin(partial(self._transfers.receive, number))

    def receive(self, number: int) -> list[mx.array]:
        """The next input."""
        with self._waiting():
            return self._thread.end() if self._thread.busy else self._transfers.receive(number)

    def close(self) -> None:
        """Ends the thread beside, once the transfers are aborted."""
        self._thread.close()


def _bring_within_reach(array: mx.array) -> None:
    """Lets MLX move an array's memory to where the processor reaches it.

    Where that is to be done it waits for the device, which has nothing to do now, and on another thread would be busy.
    """
    if array.size:
        memoryview(array).release()  # type: ignore[arg-type]  # the stub omits the buffer protocol
