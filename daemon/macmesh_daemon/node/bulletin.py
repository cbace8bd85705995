"""What happened on this node, for watchers and for the last lines of a post-mortem."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

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


@dataclass(eq=False)
class _Watcher:
    pending: deque[Bulletin] = field(default_factory=lambda: deque(maxlen=WATCHER_BACKLOG))
    lost: int = 0
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class BulletinBoard:
    """Keeps the latest bulletins and hands new ones to any number of watchers without ever blocking."""

    def __init__(self, keep: int = 1024) -> None:
        self._latest: deque[Bulletin] = deque(maxlen=keep)
        self._watchers: set[_Watcher] = set()

    def post(self, bulletin: Bulletin) -> None:
        """Keep the bulletin and wake every watcher."""
        self._latest.append(bulletin)
        for watcher in self._watchers:
            if len(watcher.pending) == WATCHER_BACKLOG:
                watcher.lost += 1
            watcher.pending.append(bulletin)
            watcher.ready.set()

    def latest(self) -> tuple[Bulletin, ...]:
        """The kept bulletins, oldest first."""
        return tuple(self._latest)

    async def watch(self) -> AsyncGenerator[Bulletin, None]:
        """Bulletins from now on, oldest first; ends only when the caller stops."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            while True:
                await watcher.ready.wait()
                watcher.ready.clear()
                while watcher.pending:
                    if watcher.lost:
                        lost, watcher.lost = watcher.lost, 0
                        first = watcher.pending[0]
                        yield Bulletin(first.time_unix_seconds, "events lost", {"count": lost})
                    yield watcher.pending.popleft()
        finally:
            self._watchers.discard(watcher)
