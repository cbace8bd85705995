"""Runs several conversations over sockets in the calling thread, all with one deadline.

A conversation is a generator. It yields what it waits for, a `Wait`, and is resumed when that has come.
"""

import dataclasses
import selectors
import socket
import time
from collections.abc import Callable, Generator

Conversation = Generator["Wait", None, None]


@dataclasses.dataclass(frozen=True)
class Wait:
    """What a conversation waits for.

    Attributes:
        source: becomes ready; None: only time passes.
        events: `selectors.EVENT_READ` or `EVENT_WRITE`.
        until: Time of `time.monotonic` at which the wait ends: with LateError where there is a socket.
    """

    source: socket.socket | None = None
    events: int = selectors.EVENT_READ
    until: float | None = None


class LateError(Exception):
    """A wait for a socket has passed its time; raised inside the conversation."""


class Reactor:
    """Conversations under way. Only the thread that calls `run` may touch it."""

    def __init__(self) -> None:
        # poll needs no descriptor of its own.
        self._selector = selectors.PollSelector()
        self._waiting: dict[Conversation, Wait] = {}

    def spawn(self, conversation: Conversation) -> None:
        """Starts a conversation; runs it up to its first wait. Whatever it raises comes out here or in `turn`."""
        self._resume(conversation, late=False)

    def drop(self, conversation: Conversation) -> None:
        """Ends a conversation where it waits."""
        self._forget(conversation)
        conversation.close()

    def turn(self, until: float) -> None:
        """Waits until something has come or `until` has passed, and resumes the conversations concerned."""
        limits = [wait.until for wait in self._waiting.values() if wait.until is not None]
        now = time.monotonic()
        timeout = max(0.0, min([until, *limits]) - now)
        ready: set[Conversation] = set()
        for key, _ in self._selector.select(timeout):
            if key.data is not None:
                ready.add(key.data)
        now = time.monotonic()
        for conversation, wait in list(self._waiting.items()):
            if conversation not in self._waiting:
                continue  # dropped by one that was resumed before it
            if conversation in ready:
                self._resume(conversation, late=False)
            elif wait.until is not None and wait.until <= now:
                self._resume(conversation, late=wait.source is not None)

    def watch(self, source: socket.socket) -> None:
        """Lets `turn` return when the socket becomes readable."""
        self._selector.register(source, selectors.EVENT_READ, None)

    def close(self) -> None:
        """Ends all conversations, so that each gives up what it holds."""
        for conversation in list(self._waiting):
            self.drop(conversation)
        self._selector.close()

    def _forget(self, conversation: Conversation) -> None:
        wait = self._waiting.pop(conversation, None)
        if wait is not None and wait.source is not None:
            self._selector.unregister(wait.source)

    def _resume(self, conversation: Conversation, *, late: bool) -> None:
        self._forget(conversation)
        advance: Callable[[], Wait] = (
            (lambda: conversation.throw(LateError())) if late else (lambda: next(conversation))
        )
        try:
            wait = advance()
        except StopIteration:
            return
        self._waiting[conversation] = wait
        if wait.source is not None:
            self._selector.register(wait.source, wait.events, conversation)
