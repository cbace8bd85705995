"""Going on without the quorum, because a person says that it is lost for good."""

from typing import TYPE_CHECKING

from .effects import ChangeDone, ChangeRejected
from .generations import next_generation, recovered_document
from .messages import Epoch

if TYPE_CHECKING:
    from .context import Context
    from .election import Election
    from .replica import Replica


class Recovery:
    """Begins a new generation with this node as the only voter; it is then elected as any other."""

    def __init__(self, context: "Context", election: "Election", replica: "Replica") -> None:
        self._context = context
        self._election = election
        self._replica = replica
        self._change_id: int | None = None

    def begin(self, change_id: int) -> None:
        """Store the first document of the generation, durably, and campaign."""
        context = self._context
        document = context.state.document
        if document is None:
            self._reject(change_id, "NO_DOCUMENT", "this node has never been a member of a cluster")
        elif document.member(context.node_id) is None:
            self._reject(change_id, "EVICTED", "this node is no member of its own document")
        elif self._election.hears_coordinator:
            who = self._election.coordinator_id
            self._reject(change_id, "HAS_QUORUM", f"{who} coordinates with a quorum: nothing is to recover")
        else:
            known = max(context.state.generation, document.generation)
            generation = next_generation(known, context.node_id, context.key_source())
            context.persist(generation=generation, term=0, voted_for="")
            self._replica.store(recovered_document(document, context.node_id, generation))
            context.announce("recovery forced", generation=generation, former_generation=known)
            self._change_id = change_id
            self._election.campaign_soon()

    def finish(self) -> None:
        """Tell the outcome, which is there by the end of the same step: its own vote is a quorum."""
        if self._change_id is None:
            return
        change_id, self._change_id = self._change_id, None
        committed = self._replica.committed
        if committed is None or committed.generation != self._context.state.generation:
            self._reject(change_id, "NO_QUORUM", "the recovery was not committed; see the log")
            return
        epoch = committed.plan.epoch if committed.plan and committed.plan.epoch else Epoch()
        self._context.emit(ChangeDone(change_id, epoch))

    def _reject(self, change_id: int, reason: str, message: str) -> None:
        self._context.emit(ChangeRejected(change_id, reason, message))
