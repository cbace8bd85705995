"""What happened on this node, for watchers and for the last lines of a post-mortem."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: A watcher that falls this far behind loses its oldest events and is told how many.
WATCHER_BACKLOG = 256


@dataclass(frozen=True, slots=True)
class Bulletin:
    """One decision or change, as this node saw it."""

    time_unix_seconds: float
    event: str
    facts: Mapping[str, Any]

    def facts_json(self) -> str:
        """The facts as compact JSON with sorted keys."""
        return json.dumps(self.facts, sort_keys=True, default=str, separators=(",", ":"))


class Watcher:
    """One reader of a board; made by `BulletinBoard.watcher`."""

    def __init__(self) -> None:
        self._pending: deque[Bulletin] = deque(maxlen=WATCHER_BACKLOG)
        self._lost = 0
        self._ready = asyncio.Event()

    def put(self, bulletin: Bulletin) -> None:
        """Take a bulletin; the oldest one goes where the reader is too far behind."""
        self._lost += len(self._pending) == WATCHER_BACKLOG
        self._pending.append(bulletin)
        self._ready.set()

    async def next(self, wait_seconds: float) -> Bulletin | None:
        """The oldest bulletin not read yet; None where none came in that time.

        Where some were lost, a bulletin "events lost" with their count comes in their place.
        """
        if not self._pending:
            self._ready.clear()
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._ready.wait()
            except TimeoutError:
                return None
        if self._lost:
            lost, self._lost = self._lost, 0
            return Bulletin(self._pending[0].time_unix_seconds, "events lost", {"count": lost})
        return self._pending.popleft()


class BulletinBoard:
    """Keeps the latest bulletins and hands new ones to any number of watchers without ever blocking."""

    def __init__(self, keep: int = 1024) -> None:
        self._latest: deque[Bulletin] = deque(maxlen=keep)
        self._watchers: set[Watcher] = set()

    def post(self, bulletin: Bulletin) -> None:
        """Keep the bulletin and wake every watcher."""
        self._latest.append(bulletin)
        for watcher in self._watchers:
            watcher.put(bulletin)

    def latest(self) -> tuple[Bulletin, ...]:
        """The kept bulletins, oldest first."""
        return tuple(self._latest)

    @contextlib.contextmanager
    def watcher(self) -> Iterator[Watcher]:
        """A reader of what is posted from now on."""
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
