"""The coordinator's heartbeats: what they carry, to whom, and the farewell to those that were evicted."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .messages import NO_VERSION, HeartbeatRequest, HeartbeatResponse
from .tracker import MemberTrack

if TYPE_CHECKING:
    from .context import Context
    from .coordinator import Coordinator


@dataclass(slots=True)
class _Farewell:
    """Telling an evicted node that it is: by heartbeats that bring the document, and that it is committed.

    Attributes:
        track: Numbers the heartbeats.
        until: When to give up.
        commit_round: The first heartbeat that told of the commit; None before.
    """

    track: MemberTrack
    until: float
    commit_round: int | None = None


class Heartbeats:
    """Sends a heartbeat to every member, this node included, with the document where it is behind."""

    def __init__(self, context: "Context", coordinator: "Coordinator") -> None:
        self._context = context
        self._coordinator = coordinator
        self._next_status = context.now
        self._told: object = None
        self._farewells: dict[str, _Farewell] = {}

    def bid_farewell(self, node_id: str) -> None:
        """Tell a node that is no member any more that it was evicted."""
        now = self._context.now
        until = now + self._context.settings.farewell_seconds
        self._farewells[node_id] = _Farewell(MemberTrack(since=now), until)

    def is_farewell(self, peer: str, response: HeartbeatResponse) -> bool:
        """Whether this is the answer of an evicted node; once it has heard of the commit, it is left alone."""
        farewell = self._farewells.get(peer)
        if farewell is None:
            return False
        if farewell.commit_round is not None and response.round >= farewell.commit_round:
            del self._farewells[peer]
        return True

    def send_to(self, node_id: str, track: MemberTrack) -> None:
        """Send one ahead of its turn, to see whether the member is there; its news comes with the next beat."""
        context, document = self._context, self._coordinator.document
        request = HeartbeatRequest(
            generation=document.generation, term=document.term, round=track.next_round(context.now)
        )
        context.send(node_id, request, context.settings.rpc_deadline_seconds)

    def send(self) -> None:
        """Send one to everybody."""
        context, coordinator = self._context, self._coordinator
        document = coordinator.document
        known = context.state.commit_version
        commit = known if known[:2] == document.version[:2] else NO_VERSION
        planning = coordinator.planning
        serving_state, refusal_json = coordinator.serving_state, planning.refusal_json
        reasons = (planning.refusal_reason, planning.rebalance.kept_reason)
        content = (serving_state, refusal_json, reasons, coordinator.watch.gist())
        tell = content != self._told or context.now >= self._next_status
        if tell:
            self._told = content
            self._next_status = context.now + context.settings.status_seconds
        statuses = coordinator.watch.statuses() if tell else ()
        generation, term, version = document.generation, document.term, document.version
        deadline = context.settings.rpc_deadline_seconds
        for node_id, track in coordinator.watch.tracks.items():
            has_it = track.stored == version or node_id == context.node_id
            request = HeartbeatRequest(
                generation=generation,
                term=term,
                round=track.next_round(context.now),
                document=None if has_it else document,
                commit_generation=commit[0],
                commit_term=commit[1],
                commit_seq=commit[2],
                members=statuses,
                serving_state=serving_state if tell else "",
                refusal_json=refusal_json if tell else "",
                refusal_reason=reasons[0] if tell else "",
                kept_reason=reasons[1] if tell else "",
            )
            context.send(node_id, request, deadline)
        self._send_farewells(is_committed=commit == document.version)

    def _send_farewells(self, *, is_committed: bool) -> None:
        context, document = self._context, self._coordinator.document
        self._farewells = {n: f for n, f in self._farewells.items() if context.now < f.until}
        for node_id, farewell in self._farewells.items():
            number = farewell.track.next_round(context.now)
            if is_committed and farewell.commit_round is None:
                farewell.commit_round = number
            commit = document.version if is_committed else NO_VERSION
            context.send(
                node_id,
                HeartbeatRequest(
                    generation=document.generation,
                    term=document.term,
                    round=number,
                    document=document,
                    commit_generation=commit[0],
                    commit_term=commit[1],
                    commit_seq=commit[2],
                ),
                context.settings.rpc_deadline_seconds,
            )
