"""What the coordinator knows of each member from its heartbeats."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .messages import HeartbeatResponse, NodeFacts, Version, WorkerReport, WorkerState

if TYPE_CHECKING:
    from .settings import ClusterSettings
    from .view import Liveness

_FORGET_ROUND_SECONDS = 10.0

GONE: "frozenset[Liveness]" = frozenset({"dead", "left"})
"""Verdicts after which a member runs nothing any more."""

Session = Literal["same", "restarted", "doubted", "refused", "duplicate"]


@dataclass(slots=True)
class MemberTrack:
    """One member, as seen by the coordinator of one term.

    Attributes:
        since: When the coordinator began to look at it.
        contact_at: When it last answered.
        reached_at: When another member was last asked for it and then reached it.
        lease_at: When the newest heartbeat that it answered was sent: until then it surely followed.
        there_at: When the coordinator before was last heard, where that saw it, or was it; None where not.
        refused_since: When its machine first refused a connection, since the last answer; None where it did not.
        refused_until: When the newest attempt that was refused was begun; None as `refused_since`.
        asked: Whom this node asked for it, since it last answered and since the last round of questions.
        hurried_at: When it was last asked ahead of its turn; None where it never was.
        timed_out_at: When a heartbeat to it last came to nothing by silence; None where none did.
        left_at: When it last said goodbye; None while it is there.
        gone_at: Since when it is dead or has left, by the last verdict.
        stored: The document version that it has stored; None until it told.
        status: Its last answer.
        heartbeat_ms: Last round trip; None until measured.
        progress: State and loaded bytes of its worker, and the time at which they last changed.
        session: Boot nonce of the daemon that is taken for the member; None until known.
        refused: Boot nonces of other daemons under the same identity, that came while `session` answered.
    """

    since: float
    contact_at: float | None = None
    reached_at: float | None = None
    lease_at: float | None = None
    there_at: float | None = None
    refused_since: float | None = None
    refused_until: float | None = None
    asked: frozenset[str] = frozenset()
    hurried_at: float | None = None
    timed_out_at: float | None = None
    left_at: float | None = None
    gone_at: float | None = None
    stored: Version | None = None
    status: HeartbeatResponse | None = None
    heartbeat_ms: float | None = None
    progress: tuple[WorkerState | None, int, float] | None = None
    session: int | None = None
    refused: frozenset[int] = frozenset()
    _session_since: float = 0.0
    _former: frozenset[int] = frozenset()
    _rival: tuple[int, float] | None = None
    _round: int = 0
    _sent_at: dict[int, float] = field(default_factory=dict)

    def next_round(self, now: float) -> int:
        """Number the next heartbeat."""
        self._round += 1
        sent_at = self._sent_at
        while sent_at and now - sent_at[oldest := next(iter(sent_at))] >= _FORGET_ROUND_SECONDS:
            del sent_at[oldest]
        sent_at[self._round] = now
        return self._round

    def forget_round(self, number: int) -> float | None:
        """A heartbeat got no answer; when it was sent, None where that is not known any more."""
        return self._sent_at.pop(number, None)

    def on_refused(self, sent_at: float, now: float) -> bool:
        """Its machine refused the connection for a heartbeat; True where that is the first time since it answered.

        Of a member that was not there it says nothing: its daemon may be about to start.
        """
        seen = [at for at in (self.lease_at, self.there_at) if at is not None]
        if not seen or sent_at <= max(seen):
            return False
        if self.refused_since is None or self.refused_until is None:
            self.refused_since = self.refused_until = now
            return True
        self.refused_until = max(sent_at, self.refused_until)
        return False

    def is_refused_for(self, seconds: float) -> bool:
        """Whether its machine has refused for so long, and nobody else reached it meanwhile."""
        if self.refused_since is None or self.refused_until is None:
            return False
        if self.reached_at is not None and self.reached_at >= self.refused_since:
            return False
        return self.refused_until - self.refused_since >= seconds

    def meet(self, boot_nonce: int, now: float, patience_seconds: float) -> None:
        """A daemon of this identity said hello; remember it where it may be a second one.

        Args:
            boot_nonce: Its boot nonce.
            now: The time.
            patience_seconds: A member that answered within this time is there.
        """
        if self.session is None or boot_nonce in {self.session, *self.refused, *self._former}:
            return
        if self.silence_seconds(now) < patience_seconds and (
            self._rival is None or self._rival[0] != boot_nonce
        ):
            self._rival = (boot_nonce, now)

    def identify(  # noqa: PLR0911  one rule, one return
        self, response: HeartbeatResponse, now: float, settings: "ClusterSettings"
    ) -> Session:
        """Say whose answer this is. Only "same" and "restarted" are the member's.

        A daemon that was started anew takes its predecessor's place: the old one answers nothing that was sent
        after the new one appeared. Where it does, there are two, and the one that came later is refused until the
        first has been silent for as long as makes a member dead.
        """
        nonce = response.boot_nonce
        sent_at = self._sent_at.get(response.round)
        if sent_at is None:  # a copy, or older than anybody remembers: it proves nothing
            return "same" if nonce == self.session else "refused"
        if self.session is None:
            self.session, self._session_since = nonce, now
            return "same"
        if nonce == self.session:
            rival = self._rival
            if rival is None or sent_at <= rival[1]:
                return "same"
            self._rival = None
            self.refused |= {rival[0]}
            return "duplicate"
        silence = self.silence_seconds(now)
        is_silent = silence >= suspect_after_seconds(settings)
        if nonce in self._former and not is_silent:
            if sent_at <= self._session_since:
                return "refused"  # its last words, late
            self.refused |= {self.session}
            self._former -= {nonce}
            self.session, self._session_since, self._rival = nonce, now, None
            return "duplicate"
        if nonce in self.refused and silence < settings.dead_after_seconds:
            return "refused"
        rival = self._rival
        if not is_silent and (rival is None or rival[0] != nonce or sent_at <= rival[1]):
            if rival is None or rival[0] != nonce:
                self._rival = (nonce, now)
            return "doubted"
        self._former |= {self.session}
        self.refused = frozenset() if is_silent else self.refused
        self.session, self._session_since, self._rival = nonce, now, None
        return "restarted"

    def on_answer(self, response: HeartbeatResponse, round_trip_ms: float, now: float) -> bool:
        """Take an accepted answer in; False where it is a duplicate or older than one taken before."""
        sent_at = self._sent_at.pop(response.round, None)
        if sent_at is None:
            return False
        self.contact_at = now
        self.refused_since = self.refused_until = None
        self.asked = frozenset()
        self.lease_at = sent_at if self.lease_at is None else max(sent_at, self.lease_at)
        self.heartbeat_ms = round_trip_ms
        if response.leaving:
            self.left_at = now if self.left_at is None else self.left_at
        elif self.left_at is not None and sent_at > self.left_at:
            self.left_at = None
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
        if self.reached_at is not None:
            self.reached_at += seconds
        if self.refused_since is not None and self.refused_until is not None:
            self.refused_since += seconds
            self.refused_until += seconds

    def silence_seconds(self, now: float) -> float:
        """How long it has not answered the coordinator."""
        return now - (self.since if self.contact_at is None else self.contact_at)

    def absence_seconds(self, now: float) -> float:
        """How long it has answered nobody, as far as the coordinator knows."""
        silence = self.silence_seconds(now)
        return silence if self.reached_at is None else min(silence, now - self.reached_at)


def suspect_after_seconds(settings: "ClusterSettings") -> float:
    """Silence that makes suspect: a heartbeat is missed when half an interval more goes by without an answer."""
    return (settings.suspect_after_heartbeats + 0.5) * settings.heartbeat_seconds


def liveness(  # noqa: PLR0911  one rule, one return
    track: MemberTrack,
    facts: NodeFacts | None,
    own: NodeFacts,
    *,
    now: float,
    health_score: int,
    settings: "ClusterSettings",
) -> "Liveness":
    """The coordinator's verdict on one member. An observer that fares badly is slower to say "dead"."""
    if track.left_at is not None:
        return "left"
    if track.is_refused_for(settings.refused_dead_seconds * (1 + health_score)):
        return "dead"
    patience = settings.dead_after_seconds * (1 + health_score)
    if track.absence_seconds(now) >= patience:
        return "dead"
    silence = track.silence_seconds(now)
    if silence >= patience:
        return "cut"
    if track.contact_at is None and track.refused_since is None:
        return "unknown"
    if silence > suspect_after_seconds(settings) or track.refused_since is not None:
        return "suspect"
    if facts is not None and facts.versions != own.versions:
        return "incompatible"
    return "alive"
