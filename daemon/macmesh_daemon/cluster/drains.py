"""Drains: a member that is to serve no stage, so that its machine can be updated, moved or switched off.

The mark `Member.draining` is in the document, so the next coordinator goes on where this one stopped::

    tried       where the member serves a stage, the planner is asked for a plan without it; its refusal ends the drain
    marked      no new plan has the member, and one is made where it serves a stage; meanwhile its stage serves on
    drained     the committed plan does without it and its worker has ended; it goes on voting

A forced drain is not tried; where no plan fits without the member, what is served ends. A coordinator that is drained
hands its office over before anything is moved.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .effects import ChangeDone, ChangeRejected, ComputePlan
from .messages import Epoch, Plan, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import Context
    from .coordinator import Coordinator
    from .events import DrainWanted, UndrainWanted
    from .messages import ClusterDocument, Member, WantedModel

_ENDED = {WorkerState.FAILED, WorkerState.STOPPED}


@dataclass(slots=True)
class _Ask:
    event: "DrainWanted | UndrainWanted"
    is_undo: bool
    phase: Literal["asked", "tried", "decided"] = "asked"
    request_id: int = -1
    since: float = 0.0

    @property
    def node_id(self) -> str:
        return self.event.node_id


class Drains:
    """The drains that this coordinator was asked for, and those that it found marked in the document."""

    def __init__(self, context: "Context", coordinator: "Coordinator") -> None:
        self._context = context
        self._coordinator = coordinator
        self._open: list[_Ask] = []
        self._marked_at: dict[str, float] = {}
        self._drained: set[str] = set()

    def begin(self, event: "DrainWanted | UndrainWanted", *, is_undo: bool) -> None:
        """Take a wish; an earlier one for the same node, if still open, is told so."""
        for ask in [ask for ask in self._open if ask.node_id == event.node_id]:
            self._reject(ask, "SUPERSEDED", "a later wish for the same node took its place")
        self._open.append(_Ask(event, is_undo))

    def advance(self) -> None:
        """Go on with the first wish: the next is tried when it stands in the document. Called with a committed one."""
        self._tell_drained()
        for ask in list(self._open):
            if ask.phase == "asked":
                self._try(ask)
            late = self._context.now - ask.since > self._context.settings.compute_timeout_seconds
            if ask.phase == "tried" and late:
                self._reject(ask, "PLANNER_TIMEOUT", "the planner did not say whether the rest suffices")
            if ask in self._open:
                return

    def on_computed(self, request_id: int) -> None:
        """The planner has a plan without the member: it may be drained."""
        for ask in self._tried(request_id):
            ask.phase = "decided"

    def on_refused(self, request_id: int, reason: str, refusal_json: str) -> None:
        """No plan fits without the member: nothing is changed."""
        for ask in self._tried(request_id):
            message = f"no plan can be made without {ask.node_id}; it keeps its stage"
            self._reject(ask, reason, message, refusal_json)

    def apply(self, document: "ClusterDocument", next_epoch: "Callable[[], Epoch]") -> "ClusterDocument":
        """Mark what is decided; end what serves where a forced drain leaves too little.

        Gives ``document`` itself where there is nothing to do.
        """
        decided = {ask.node_id: ask for ask in self._open if ask.phase == "decided"}
        if not decided and not any(member.draining for member in document.members):
            self._marked_at = {}
            return document
        members = tuple(self._marked(m, decided.get(m.node_id)) for m in document.members)
        if members != document.members:
            document = replace(document, members=members)
        going = [m.node_id for m in members if m.draining]
        now = self._context.now
        self._marked_at = {node_id: self._marked_at.get(node_id, now) for node_id in going}
        for member in members:
            plan = document.plan
            if member.drain_forced and plan is not None and member.node_id in plan.node_ids:
                late = now - self._marked_at[member.node_id] >= self._context.settings.evict_replan_seconds
                if late or self._coordinator.planning.refusal_reason:
                    self._context.announce("plan ended for a drain", node_id=member.node_id)
                    document = replace(document, plan=Plan(next_epoch()))
        return document

    def on_commit(self, document: "ClusterDocument") -> None:
        """A document is committed: end the wishes that it carries."""
        epoch = document.plan.epoch if document.plan and document.plan.epoch else Epoch()
        for ask in [ask for ask in self._open if ask.phase == "decided"]:
            member = document.member(ask.node_id)
            if member is None:
                self._reject(ask, "UNKNOWN_NODE", f"{ask.node_id} is no member any more")
            elif self._marked(member, ask) == member:
                self._open.remove(ask)
                self._context.emit(ChangeDone(ask.event.change_id, epoch))

    def abandon(self) -> None:
        """This node is no longer coordinator."""
        for ask in list(self._open):
            self._reject(ask, "NO_QUORUM", "this node lost its quorum before the drain was stored; ask again")

    def _try(self, ask: _Ask) -> None:
        document = self._coordinator.document
        member = document.member(ask.node_id)
        if member is None:
            self._reject(ask, "UNKNOWN_NODE", f"{ask.node_id} is no member of this cluster")
            return
        wanted = self._on_trial(ask, document, member)
        if wanted is None:
            ask.phase = "decided"
            return
        members = tuple(m for m in self._coordinator.planning.means(wanted) if m.node_id != ask.node_id)
        if not members:
            self._reject(ask, "NO_ELIGIBLE_NODE", f"no other node could take over what {ask.node_id} serves")
            return
        ask.phase, ask.since = "tried", self._context.now
        ask.request_id = self._context.next_request_id()
        self._context.announce("drain tried", node_id=ask.node_id, nodes=sorted(m.node_id for m in members))
        failures = self._coordinator.planning.failures_to_heed()
        self._context.emit(ComputePlan(ask.request_id, wanted, members, document.plan, failures))

    @staticmethod
    def _on_trial(ask: _Ask, document: "ClusterDocument", member: "Member") -> "WantedModel | None":
        """What must fit without the member; None where nothing is to be tried."""
        if ask.is_undo or getattr(ask.event, "force", False) or member.draining:
            return None
        is_planned = document.plan is not None and ask.node_id in document.plan.node_ids
        return document.wanted if is_planned else None

    def _marked(self, member: "Member", ask: "_Ask | None") -> "Member":
        if ask is None:
            return member
        if ask.is_undo:
            wanted = replace(member, draining=False, drain_forced=False, drain_leaves=False)
        else:
            force, leave = getattr(ask.event, "force", False), getattr(ask.event, "leave", False)
            wanted = replace(member, draining=True, drain_forced=force, drain_leaves=leave)
        if wanted.draining != member.draining:
            self._context.announce(
                "drain begun" if wanted.draining else "drain undone", node_id=member.node_id
            )
        return wanted

    def _tell_drained(self) -> None:
        document = self._coordinator.document
        now_drained = set()
        for member in document.members:
            if member.draining and not (document.plan and member.node_id in document.plan.node_ids):
                worker = self._coordinator.worker_of(member.node_id)
                if worker is None or worker.state in _ENDED:
                    now_drained.add(member.node_id)
        for node_id in sorted(now_drained - self._drained):
            self._context.announce("node drained", node_id=node_id)
        self._drained = now_drained

    def _tried(self, request_id: int) -> list[_Ask]:
        return [ask for ask in self._open if ask.phase == "tried" and ask.request_id == request_id]

    def _reject(self, ask: _Ask, reason: str, message: str, refusal_json: str = "") -> None:
        self._open.remove(ask)
        self._context.emit(ChangeRejected(ask.event.change_id, reason, message, refusal_json))
