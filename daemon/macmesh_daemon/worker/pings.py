"""Signs of life of the inference thread."""

import collections
import contextlib
from collections.abc import Callable, Iterator

from macmesh.v1 import lane_pb2


class Pings:
    """Pings that wait for the inference thread to turn, which proves that it does.

    A thread that waits for another stage is alive too, and the transfer's own deadline bounds that wait: there the
    event loop answers in its place.

    Args:
        answer: tells the daemon; called from either thread.
        wake: lets the inference thread call `answer_all` soon; called from the event loop.
    """

    def __init__(self, answer: Callable[[lane_pb2.PingWorker], None], wake: Callable[[], None]) -> None:
        self._answer = answer
        self._wake = wake
        self._unanswered: collections.deque[lane_pb2.PingWorker] = collections.deque()
        self._waiting = False

    def ask(self, ping: lane_pb2.PingWorker) -> None:
        """Takes a ping from the daemon."""
        # First noted, then looked at the flag; `waiting` does it the other way round. So one of both sees it.
        self._unanswered.append(ping)
        if self._waiting:
            self.answer_all()
        else:
            self._wake()

    def answer_all(self) -> None:
        """Answers what has come. Called by the inference thread at every turn of its loop."""
        while self._unanswered:
            try:
                ping = self._unanswered.popleft()
            except IndexError:  # the other thread was quicker
                return
            self._answer(ping)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The inference thread waits for another stage, with a deadline."""
        self._waiting = True
        try:
            self.answer_all()
            yield
        finally:
            self._waiting = False
