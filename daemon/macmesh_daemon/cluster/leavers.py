"""Members that say goodbye to the coordinator, and when each may go."""

from typing import TYPE_CHECKING

from .messages import LeaveResponse
from .quorum import outweighs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .context import Context
    from .watch import MemberWatch


class Leavers:
    """Holds the goodbyes that are not answered yet.

    Args:
        context: Shared with the other parts.
        watch: Judges the members.
    """

    def __init__(self, context: "Context", watch: "MemberWatch") -> None:
        self._context = context
        self._watch = watch
        self._waiting: list[tuple[int, str]] = []

    def on_leave(self, request_id: int, peer: str, reason: str) -> None:
        """A member says goodbye."""
        self._watch.on_leave(peer, reason)
        self._waiting.append((request_id, peer))

    def let_go(self, votes: "Mapping[str, int]", *, is_settled: bool) -> None:
        """Answer those that leave. The extra vote of a tie-breaker moves while it is still there to agree.

        Who said since that it stays, or was started anew, waits for nothing any more: its goodbye is void.

        Args:
            votes: Of the newest version.
            is_settled: Whether that is committed.
        """
        for request_id, peer in list(self._waiting):
            storing = self._watch.answering()
            heard = is_settled and outweighs(votes, storing - {peer})
            if heard or not self._watch.has_left(peer) or not self._watch.may_answer(peer):
                self._waiting.remove((request_id, peer))
                self._context.reply(request_id, LeaveResponse(*self._context.state.ballot, heard))

    def abandon(self) -> None:
        """This node is no longer coordinator: whoever waits asks the next one."""
        for request_id, _ in self._waiting:
            self._context.reply(request_id, LeaveResponse(*self._context.state.ballot))
