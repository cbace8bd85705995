"""The queue of requests that wait. Pure."""

import collections
import dataclasses
from collections.abc import Callable, Iterator

from macmesh_daemon.engine.limits import Limits
from macmesh_daemon.engine.requests import Effect, Request, Waiting

_TOLD_EVERY_SECONDS = 1.0


@dataclasses.dataclass(eq=False)
class _Place:
    request: Request
    bypassed: int = 0
    """Later requests that were taken since it stood before them."""
    blocked_since: float | None = None
    """When it was first found not to fit."""
    told_position: int = 0
    told_at: float = 0.0


class WaitingQueue:
    """Requests in the order in which they came.

    One that does not fit yet may be passed by later ones that do, but only so often and only for so long: then
    nobody passes it any more, so that what runs ends and makes room.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places: collections.OrderedDict[str, _Place] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._places

    def __iter__(self) -> Iterator[Request]:
        return (place.request for place in self._places.values())

    def add(self, request: Request) -> None:
        """Puts a request at the end."""
        self._places[request.request_id] = _Place(request)

    def remove(self, request_id: str) -> bool:
        """Takes a request out; False where it does not wait."""
        return self._places.pop(request_id, None) is not None

    def admit(self, take: Callable[[Request], bool | None], now: float) -> None:
        """Offers requests to ``take`` in their order, until it is over.

        Args:
            take: Takes a request and returns True, or returns False where it does not fit yet, or None where
                nothing more can be taken at all.
            now: For how long a request has been passed.
        """
        passed: list[_Place] = []
        for place in list(self._places.values()):
            if any(before.bypassed >= self._limits.bypasses for before in passed):
                return
            taken = take(place.request)
            if taken is None:
                return
            if taken:
                del self._places[place.request.request_id]
                for before in passed:
                    before.bypassed += 1
                continue
            if place.blocked_since is None:
                place.blocked_since = now
            if now - place.blocked_since >= self._limits.bypass_seconds:
                return
            passed.append(place)

    def tell(self, estimate: Callable[[int], float | None], now: float) -> list[Effect]:
        """Tells those whose position has changed, each at most once a second.

        Args:
            estimate: Seconds until the request at a position, from 1, begins; None where that is not known.
            now: Of the injected clock.
        """
        told: list[Effect] = []
        for position, place in enumerate(self._places.values(), start=1):
            if position == place.told_position:
                continue
            if place.told_position and now - place.told_at < _TOLD_EVERY_SECONDS:
                continue
            place.told_position, place.told_at = position, now
            told.append(Waiting(place.request.request_id, position, estimate(position)))
        return told
