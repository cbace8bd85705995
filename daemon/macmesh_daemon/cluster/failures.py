"""Which workers failed how often: the wait before the next try, and who is left out."""

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import ClusterSettings


class FailureRecord:
    """Counts failures of (node, model) pairs within a window. Kept by the coordinator, for its term."""

    def __init__(self, settings: "ClusterSettings") -> None:
        self._settings = settings
        self._failed_at: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._quarantined_until: dict[tuple[str, str], float] = {}

    def record(self, node_id: str, model_digest: str, now: float) -> bool:
        """Count a failure; True where it puts the node into quarantine for the model."""
        key = (node_id, model_digest)
        failed_at = [at for at in self._failed_at[key] if now - at < self._settings.failure_window_seconds]
        failed_at.append(now)
        self._failed_at[key] = failed_at
        if len(failed_at) < self._settings.quarantine_after_failures:
            return False
        self._failed_at[key] = []
        self._quarantined_until[key] = now + self._settings.quarantine_seconds
        return True

    def backoff_seconds(self, model_digest: str, now: float) -> float:
        """Wait after a failure not recorded yet: 1 second, doubled by each recorded one in the window."""
        window = self._settings.failure_window_seconds
        count = sum(
            now - at < window
            for (_, digest), failed_at in self._failed_at.items()
            if digest == model_digest
            for at in failed_at
        )
        return float(min(2.0**count, self._settings.restart_backoff_max_seconds))

    def is_quarantined(self, node_id: str, model_digest: str, now: float) -> bool:
        """Whether the node is left out of plans for the model."""
        return now < self._quarantined_until.get((node_id, model_digest), now)

    def forgive(self) -> None:
        """Forget everything: a person asked anew."""
        self._failed_at.clear()
        self._quarantined_until.clear()
