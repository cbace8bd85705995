"""A node that goes down in order: it hands over, says so, and waits a moment to be heard."""

from typing import TYPE_CHECKING

from .effects import LeaveFinished
from .messages import LeaveRequest

if TYPE_CHECKING:
    from .context import Context
    from .election import Election


class Goodbye:
    """This node's leave, from `LeaveWanted` to `LeaveFinished`.

    While it lasts, and after it, the node neither campaigns nor promises anything, and its answers to
    heartbeats say that it goes: whoever comes to coordinate learns it with the first of them.
    """

    def __init__(self, context: "Context", election: "Election") -> None:
        self._context = context
        self._election = election
        self._reason = ""
        self._told = ""
        self.deadline: float | None = None

    def begin(self, reason: str) -> None:
        """Go."""
        self._context.is_leaving = True
        self._reason, self._told = reason, ""
        self.deadline = self._context.now + self._context.settings.leave_timeout_seconds
        self._context.announce("leaving", reason=reason)

    def cancel(self) -> None:
        """Stay after all."""
        self._context.is_leaving = False
        self.deadline = None

    def advance(self, *, can_hand_over: bool) -> None:
        """Tell the coordinator; end where nobody is there to tell.

        Args:
            can_hand_over: This node is coordinator and another could take over.
        """
        if self.deadline is None:
            return
        coordinator = self._election.coordinator_id
        is_own = coordinator == self._context.node_id
        if self._context.now >= self.deadline or (is_own and not can_hand_over):
            self.finish()
        elif coordinator and not is_own and coordinator != self._told:
            self._told = coordinator
            request = LeaveRequest(*self._context.state.ballot, self._reason)
            self._context.send(coordinator, request, self._context.settings.leave_timeout_seconds)

    def on_heard(self) -> None:
        """The coordinator has heard. Where it has not, the answer to its next heartbeat tells it."""
        if self.deadline is not None:
            self.finish()

    def finish(self) -> None:
        """Nothing more can be done."""
        self.deadline = None
        self._context.emit(LeaveFinished())
