"""What the coordinator knows of each member from its heartbeats."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .messages import HeartbeatResponse, NodeFacts, Version, WorkerReport, WorkerState

if TYPE_CHECKING:
    from .settings import ClusterSettings
    from .view import Liveness

_FORGET_ROUND_SECONDS = 10.0


@dataclass(slots=True)
class MemberTrack:
    """One member, as seen by the coordinator of one term.

    Attributes:
        since: When the coordinator began to look at it.
        contact_at: When it last answered.
        lease_at: When the newest heartbeat that it answered was sent: until then it surely followed.
        stored: The document version that it has stored; None until it told.
        status: Its last answer.
        heartbeat_ms: Last round trip; None until measured.
        progress: State and loaded bytes of its worker, and the time at which they last changed.
    """

    since: float
    contact_at: float | None = None
    lease_at: float | None = None
    stored: Version | None = None
    status: HeartbeatResponse | None = None
    heartbeat_ms: float | None = None
    progress: tuple[WorkerState | None, int, float] | None = None
    _round: int = 0
    _sent_at: dict[int, float] = field(default_factory=dict)

    def next_round(self, now: float) -> int:
        """Number the next heartbeat."""
        self._round += 1
        self._sent_at = {r: at for r, at in self._sent_at.items() if now - at < _FORGET_ROUND_SECONDS}
        self._sent_at[self._round] = now
        return self._round

    def forget_round(self, number: int) -> None:
        """A heartbeat got no answer."""
        self._sent_at.pop(number, None)

    def on_answer(self, response: HeartbeatResponse, round_trip_ms: float, now: float) -> bool:
        """Take an accepted answer in; False where it is a duplicate or older than one taken before."""
        sent_at = self._sent_at.pop(response.round, None)
        if sent_at is None:
            return False
        self.contact_at = now
        self.lease_at = sent_at if self.lease_at is None else max(sent_at, self.lease_at)
        self.heartbeat_ms = round_trip_ms
        if self.status is not None and response.round < self.status.round:
            return False
        self.status = response
        self.stored = response.document_version
        self.on_worker(response.worker, now)
        return True

    def on_worker(self, worker: WorkerReport | None, now: float) -> None:
        """Note whether the worker made progress."""
        state, loaded = (worker.state, worker.loaded_bytes) if worker else (None, 0)
        if self.progress is None or self.progress[:2] != (state, loaded):
            self.progress = (state, loaded, now)

    def excuse(self, seconds: float) -> None:
        """Do not count this time as silence: the observer was away."""
        self.since += seconds
        if self.contact_at is not None:
            self.contact_at += seconds

    def silence_seconds(self, now: float) -> float:
        """How long it has not answered."""
        return now - (self.since if self.contact_at is None else self.contact_at)


def liveness(
    track: MemberTrack,
    facts: NodeFacts | None,
    own: NodeFacts,
    *,
    now: float,
    health_score: int,
    settings: "ClusterSettings",
) -> "Liveness":
    """The coordinator's verdict on one member. An observer that fares badly is slower to say "dead"."""
    silence = track.silence_seconds(now)
    if silence >= settings.dead_after_seconds * (1 + health_score):
        return "dead"
    if track.contact_at is None:
        return "unknown"
    # A heartbeat is missed when half an interval more has gone by without its answer.
    if silence > (settings.suspect_after_heartbeats + 0.5) * settings.heartbeat_seconds:
        return "suspect"
    if facts is not None and facts.versions != own.versions:
        return "incompatible"
    return "alive"
