"""Nodes that come and go are left out of plans for a while, and gained capacity does not hurry."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import ClusterSettings


class FlapRecord:
    """Points for every return of a node, which fall by half in `flap_half_life_seconds`.

    The way in which routers damp flapping routes: a node is left out of new plans from `flap_suppress_points`
    on, and planned again below `flap_reuse_points`. It stays a member all the while. Kept by each node for what
    it has seen as coordinator; another coordinator begins anew.
    """

    def __init__(self, settings: "ClusterSettings") -> None:
        self._settings = settings
        self._points: dict[str, tuple[float, float]] = {}
        self._suppressed: set[str] = set()

    def returned(self, node_id: str, now: float) -> None:
        """Charge a node that was gone and is back."""
        points = min(self.points(node_id, now) + 1.0, self._settings.flap_max_points)
        self._points[node_id] = (points, now)
        if points >= self._settings.flap_suppress_points:
            self._suppressed.add(node_id)

    def points(self, node_id: str, now: float) -> float:
        """What is left of a node's points."""
        points, at = self._points.get(node_id, (0.0, now))
        return float(points * 0.5 ** ((now - at) / self._settings.flap_half_life_seconds))

    @property
    def has_suppressed(self) -> bool:
        """Whether any node may be left out of new plans."""
        return bool(self._suppressed)

    def is_suppressed(self, node_id: str, now: float) -> bool:
        """Whether the node is left out of new plans."""
        if node_id not in self._suppressed:
            return False
        if self.points(node_id, now) < self._settings.flap_reuse_points:
            self._suppressed.discard(node_id)
            return False
        return True

    def forgive(self) -> None:
        """Forget everything: a person asked anew."""
        self._points.clear()
        self._suppressed.clear()


class HoldDown:
    """How long gained capacity waits before it leads to another plan.

    `hold_down_min_seconds` after a plan; doubled for each plan that follows another within
    `hold_down_window_seconds`, up to `hold_down_max_seconds`; back to the least after a quiet window.
    """

    def __init__(self, settings: "ClusterSettings") -> None:
        self._settings = settings
        self._planned_at: float | None = None
        self._seconds = settings.hold_down_min_seconds

    def planned(self, now: float) -> None:
        """Note that a plan was made."""
        settings = self._settings
        before = self._planned_at
        if before is not None and now - before < settings.hold_down_window_seconds:
            self._seconds = min(2 * self._seconds, settings.hold_down_max_seconds)
        else:
            self._seconds = settings.hold_down_min_seconds
        self._planned_at = now

    def is_over(self, now: float) -> bool:
        """Whether gained capacity may lead to a plan now."""
        return self._planned_at is None or now - self._planned_at >= self._seconds
