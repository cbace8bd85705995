"""The one change that people may have open: load a model, or unload."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .effects import ChangeAccepted, ChangeDone, ChangeRejected
from .messages import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import Context
    from .messages import ClusterDocument, Epoch, Version, WantedModel


@dataclass(slots=True)
class _OpenChange:
    change_id: int
    wanted: "WantedModel | None"
    accepted: bool = False


class OpenChange:
    """Follows the newest change from its event to its outcome. A later change supersedes it."""

    def __init__(self, context: "Context") -> None:
        self._context = context
        self._open: _OpenChange | None = None

    @property
    def wanted(self) -> "WantedModel | None":
        """What the open change wants; None is to serve nothing. Meaningful only while `is_pending`."""
        return self._open.wanted if self._open else None

    @property
    def is_pending(self) -> bool:
        """Whether a change waits for its place in the committed document."""
        return self._open is not None and not self._open.accepted

    def begin(self, change_id: int, wanted: "WantedModel | None") -> None:
        """Take a change; the one before it, if still open, is told so."""
        self.reject("SUPERSEDED", "a later change took its place")
        self._open = _OpenChange(change_id, wanted)

    def apply(self, document: "ClusterDocument", next_epoch: "Callable[[], Epoch]") -> "ClusterDocument":
        """The document with what the open change wants, unless it was accepted; to serve nothing is a plan, too."""
        if not self.is_pending:
            return document
        wanted = self.wanted
        document = replace(document, wanted=wanted)
        plan = document.plan
        if wanted is None and (plan is None or plan.deployments or plan.wanted is not None):
            document = replace(document, plan=Plan(next_epoch()))
        return document

    def on_commit(self, document: "ClusterDocument") -> None:
        """A document is committed: accepted where it carries the change, done where its plan answers it."""
        change = self._open
        if change is None or document.wanted != change.wanted:
            return
        if not change.accepted:
            change.accepted = True
            self._emit_accepted(change.change_id, document.version)
        plan = document.plan
        if plan is not None and plan.epoch is not None and plan.wanted == change.wanted:
            self._emit_done(change.change_id, plan.epoch)
            self._open = None

    def reject(self, reason: str, message: str, refusal_json: str = "") -> None:
        """End the open change, if there is one."""
        change, self._open = self._open, None
        if change is not None:
            self._context.emit(ChangeRejected(change.change_id, reason, message, refusal_json))

    def refuse(self, wanted: "WantedModel", reason: str, message: str, refusal_json: str) -> None:
        """The planner refused ``wanted``: end the open change where it is for that."""
        if self._open is not None and self._open.wanted == wanted:
            self.reject(reason, message, refusal_json)

    def abandon(self) -> None:
        """This node is no longer coordinator."""
        if self._open is not None and self._open.accepted:
            self.reject(
                "COORDINATOR_CHANGED", "the change was accepted; the next coordinator goes on with it"
            )
        else:
            self.reject("NO_QUORUM", "this node lost its quorum before the change was stored; ask again")

    def _emit_accepted(self, change_id: int, version: "Version") -> None:
        self._context.emit(ChangeAccepted(change_id, version))

    def _emit_done(self, change_id: int, epoch: "Epoch") -> None:
        self._context.emit(ChangeDone(change_id, epoch))
