"""A coordinator that has to go hands its office to another voter, in milliseconds instead of an election.

Source: Ongaro, "Consensus: Bridging Theory and Practice" (2014), section 3.10.
"""

from typing import TYPE_CHECKING

from .messages import Member, TransferLeadershipRequest, TransferLeadershipResponse

if TYPE_CHECKING:
    from collections.abc import Collection

    from .context import Context
    from .coordinator import Coordinator


class Transfer:
    """Asks one voter after the other to take over, while there is a reason to go.

    The one that is asked campaigns in the next term, and its votes depose this coordinator as those of any other
    would. Nothing is written while it is asked, so that its document stays the newest.
    """

    def __init__(self, context: "Context", coordinator: "Coordinator") -> None:
        self._context = context
        self._coordinator = coordinator
        self._asked: dict[str, float] = {}
        self._busy_until: float | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether somebody was asked to take over and may yet do so."""
        return self._busy_until is not None and self._context.now < self._busy_until

    @property
    def is_possible(self) -> bool:
        """Whether there is somebody to hand over to, if perhaps not yet with the newest version."""
        return bool(self._able())

    def is_possible_without(self, node_ids: "Collection[str]") -> bool:
        """Whether there is somebody beside these."""
        return any(member.node_id not in node_ids for member in self._able())

    @property
    def _is_for_a_drain(self) -> bool:
        """Whether this node has to go for a drain only: then others that are drained are no better."""
        own = self._coordinator.document.by_node_id.get(self._context.node_id)
        return own is not None and own.draining and not own.evicting and not self._context.is_leaving

    def _able(self) -> list[Member]:
        return [
            member
            for member in self._coordinator.document.members
            if member.voter
            and not member.evicting
            and not (member.draining and self._is_for_a_drain)
            and member.node_id != self._context.node_id
            and self._coordinator.liveness(member.node_id) in {"alive", "incompatible"}
        ]

    def heirs(self) -> list[str]:
        """Voters that could take over now, those not asked yet first."""
        version, tracks = self._coordinator.document.version, self._coordinator.watch.tracks
        able = [member for member in self._able() if tracks[member.node_id].stored == version]
        able.sort(
            key=lambda m: (m.draining, self._asked.get(m.node_id, 0.0), bool(m.facts and m.facts.portable))
        )
        return [member.node_id for member in able]

    def advance(self, reason: str) -> None:
        """Ask the next voter, where this node has to go. Called with a committed document."""
        if not reason or self.is_under_way:
            return
        heirs = self.heirs()
        if not heirs:
            return
        context = self._context
        self._asked[heirs[0]] = context.now
        self._busy_until = context.now + context.settings.election_timeout_min_seconds
        context.announce("leadership handed over", node_id=heirs[0], reason=reason)
        request = TransferLeadershipRequest(*context.state.ballot)
        context.send(heirs[0], request, context.settings.rpc_deadline_seconds)

    def on_response(self, response: TransferLeadershipResponse) -> None:
        """Take in a refusal: the next may be asked."""
        if not response.accepted:
            self._busy_until = None
