"""Evictions: from an operator's wish to a committed document that denies the node.

The mark `Member.evicting` is in the document, so the next coordinator goes on where this one stopped::

    marked      no new plan has the node, and a new one is made where it has a stage
    no vote     its weight is taken in steps that keep a quorum (`quorum.next_weight_change`)
    denied      no plan and no vote: it is taken from the members and denied, in one version

A coordinator that is to go hands its office over once the mark is committed; its successor does the rest.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from .effects import ChangeAccepted, ChangeDone, ChangeRejected
from .messages import Epoch, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import Context
    from .messages import ClusterDocument


class Evictions:
    """The evictions that this coordinator was asked for, and those that it found marked in the document."""

    def __init__(self, context: "Context") -> None:
        self._context = context
        self._open: dict[str, list[int]] = {}
        self._accepted: set[int] = set()
        self._marked_at: dict[str, float] = {}

    @property
    def wanted(self) -> set[str]:
        """Nodes whose eviction was asked for here and is not done."""
        return set(self._open)

    def begin(self, change_id: int, node_id: str) -> None:
        """Take a wish."""
        self._open.setdefault(node_id, []).append(change_id)

    def apply(self, document: "ClusterDocument", next_epoch: "Callable[[], Epoch]") -> "ClusterDocument":
        """Take every eviction one step on; gives ``document`` itself where there is nothing to do."""
        if not self._open and not any(member.evicting for member in document.members):
            self._marked_at = {}
            return document
        now = self._context.now
        members = {member.node_id: member for member in document.members}
        denied = set(document.denied_node_ids)
        for node_id in self._open:
            if node_id not in members:
                denied.add(node_id)
            elif not members[node_id].evicting:
                members[node_id] = replace(members[node_id], evicting=True)
                self._context.announce("eviction begun", node_id=node_id)
        going = [m.node_id for m in document.members if members[m.node_id].evicting]
        self._marked_at = {node_id: self._marked_at.get(node_id, now) for node_id in going}
        plan = document.plan
        for node_id in going:
            is_planned = plan is not None and node_id in plan.node_ids
            if is_planned and now - self._marked_at[node_id] >= self._context.settings.evict_replan_seconds:
                plan, is_planned = Plan(next_epoch()), False
                self._context.announce("plan ended for an eviction", node_id=node_id)
            if not is_planned and not members[node_id].voter and node_id != self._context.node_id:
                del members[node_id]
                denied.add(node_id)
        changed = replace(
            document,
            members=tuple(members.values()),
            plan=plan,
            denied_node_ids=tuple(sorted(denied)),
        )
        return document if changed == document else changed

    def on_commit(self, document: "ClusterDocument") -> None:
        """A document is committed: tell those who asked how far they are."""
        epoch = document.plan.epoch if document.plan and document.plan.epoch else Epoch()
        for node_id, change_ids in list(self._open.items()):
            member = document.member(node_id)
            if node_id in document.denied_node_ids:
                self._context.announce("node evicted", node_id=node_id)
                for change_id in change_ids:
                    self._context.emit(ChangeDone(change_id, epoch))
                    self._accepted.discard(change_id)
                del self._open[node_id]
            elif member is not None and member.evicting:
                for change_id in change_ids:
                    if change_id not in self._accepted:
                        self._accepted.add(change_id)
                        self._context.emit(ChangeAccepted(change_id, document.version))

    def abandon(self) -> None:
        """This node is no longer coordinator."""
        for change_ids in self._open.values():
            for change_id in change_ids:
                reason, message = (
                    ("COORDINATOR_CHANGED", "the eviction was accepted; the next coordinator goes on with it")
                    if change_id in self._accepted
                    else ("NO_QUORUM", "this node lost its quorum before the eviction was stored; ask again")
                )
                self._context.emit(ChangeRejected(change_id, reason, message))
        self._open = {}
