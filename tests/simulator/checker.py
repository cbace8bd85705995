"""The invariants of a simulated cluster, over everything that has ever happened in it.

The numbers are those of the design's section on the cluster. 1: one coordinator per term. 2: one plan per epoch.
3: one worker per node. 4: nothing of an older epoch is used. 5: a committed document is not lost. 6: whatever was
asked ends once. A node that was evicted is never answered but by a refusal. To these come: what was promised,
voted, stored or made active stands on the drive before anybody is told, and never goes back.
"""

from typing import NoReturn

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.messages import (
    NO_VERSION,
    Ballot,
    ClusterDocument,
    CommitResponse,
    Epoch,
    HeartbeatRequest,
    HeartbeatResponse,
    Plan,
    PrepareResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    Version,
)
from macmesh_daemon.cluster.state import PersistentState

from .node import SimNode


class InvariantBrokenError(AssertionError):
    """An invariant does not hold."""


class Checker:
    """Looks at every step, every effect, every crash and every start."""

    def __init__(self) -> None:
        self.coordinators: dict[Ballot, str] = {}
        self.plans: dict[Epoch, Plan] = {}
        self.committed: dict[Version, ClusterDocument] = {}
        self.committed_epochs: set[Epoch] = set()
        self.last_committed: dict[int, Version] = {}
        self.started: dict[str, Epoch] = {}
        self.started_alone: dict[str, Epoch] = {}
        #: Nodes that somebody asked to serve again after a drain.
        self.undrained: set[str] = set()

    # -- the drive ------------------------------------------------------------------------------------

    def on_persist(self, node: SimNode, new: PersistentState) -> None:
        """A node is about to replace its durable state."""
        old = node.disk
        self._never_back(node, old, new)
        if new.active is not None:
            self._must(new.promised is not None and new.active <= new.promised, node, "active above promised")
        if new.active != old.active:
            self._must(node.worker is None, node, f"{new.active} is active beside {node.worker}")
        for plan in (new.promised_plan, new.active_plan, new.document.plan if new.document else None):
            if plan is not None and plan.epoch is not None:
                known = self.plans.setdefault(plan.epoch, plan)
                self._must(known == plan, node, f"two plans under epoch {plan.epoch}")

    def on_boot(self, node: SimNode, state: PersistentState) -> None:
        """A daemon starts from ``state``: all that it ever told rests on what was durable then."""
        self._never_back(node, node.drive.acknowledged, state)

    def _never_back(self, node: SimNode, old: PersistentState, new: PersistentState) -> None:
        self._must(new.ballot >= old.ballot, node, "its ballot fell")
        if new.ballot == old.ballot:
            self._must(old.voted_for in {"", new.voted_for}, node, "it voted twice in a term")
        self._must(new.document_version >= old.document_version, node, "its document went back")
        self._must(new.commit_version >= old.commit_version, node, "its commit went back")
        for name, before, after in (
            ("promise", old.promised, new.promised),
            ("active epoch", old.active, new.active),
        ):
            self._must(
                before is None or (after is not None and after >= before), node, f"its {name} went back"
            )
        self._must(new.local_seq >= old.local_seq, node, "its count of plans for itself went back")

    # -- coordinators and documents -------------------------------------------------------------------

    def on_step(self, node: SimNode, machine: ClusterMachine) -> None:
        """A machine has decided something."""
        if machine._coordinator is None:
            return
        state = machine._context.state
        disk = node.drive.state
        checked = node.checked
        if (
            checked is not None
            and checked[0] is state
            and checked[1] is disk
            and self.coordinators.get(state.ballot) == node.node_id
        ):
            return  # neither ever changes, so all else was found to hold and is noted
        self._check_coordinator(node, machine, disk)
        node.checked = (state, disk)

    def _check_coordinator(self, node: SimNode, machine: ClusterMachine, disk: PersistentState) -> None:
        state = machine._context.state
        ballot = state.ballot
        if disk.ballot != ballot:
            return
        if self.coordinators.setdefault(ballot, node.node_id) != node.node_id:
            self._fail(node, f"second coordinator of term {ballot}")
        version = state.commit_version
        # What is told of a version stands behind its Persist.
        if version[:2] == ballot and version not in self.committed and version <= disk.document_version:
            document = machine._replica.committed
            assert document is not None
            self._commit(node, version, document)

    def _commit(self, node: SimNode, version: Version, document: ClusterDocument) -> None:
        self._must(document.version == version, node, "it committed what it has not stored")
        last = self.last_committed.get(document.generation)
        self._must(last is None or version > last, node, f"{version} was committed after {last}")
        if last is not None:
            self._must_follow(node, self.committed[last], document)
        self.committed[version] = document
        self.last_committed[document.generation] = version
        if document.plan is not None and document.plan.epoch is not None:
            self.committed_epochs.add(document.plan.epoch)

    def _must_follow(self, node: SimNode, before: ClusterDocument, document: ClusterDocument) -> None:
        """Within a generation nothing committed is lost; a recovery by force may give up what it never saw."""
        if before.plan is not None and before.plan.epoch is not None:
            epoch = document.plan.epoch if document.plan is not None else None
            self._must(epoch is not None and epoch >= before.plan.epoch, node, "the committed plan was lost")
        if document.plan is not None and document.plan != before.plan:
            drained = {m.node_id for m in document.members if m.draining} & set(document.plan.node_ids)
            self._must(not drained, node, f"the drained {drained} were given a stage")
        was_drained = {m.node_id for m in before.members if m.draining}
        is_served = {m.node_id for m in document.members if not m.draining}
        lost = (was_drained & is_served) - self.undrained
        self._must(not lost, node, f"the drains of {lost} were lost")
        names = {member.node_id for member in document.members}
        denied = set(document.denied_node_ids)
        lost = {m.node_id for m in before.members} - names - denied
        self._must(not lost, node, f"committed members {lost} were lost")
        self._must(denied >= set(before.denied_node_ids), node, "a denied node was let in")
        self._must(not denied & names, node, "a denied node is a member")

    # -- what is told ---------------------------------------------------------------------------------

    def on_send(self, node: SimNode, call: fx.Send) -> None:
        """A call leaves a node."""
        message, disk = call.message, node.drive.state
        stored = disk.document_version
        if isinstance(message, HeartbeatRequest):
            told = message.document.version if message.document is not None else NO_VERSION
            if not message.commit_version <= stored:
                self._fail(node, "it tells a commit it lost")
        elif isinstance(message, RequestVoteRequest):
            if not message.pre_vote:
                ballot = (message.generation, message.term)
                is_own = disk.ballot == ballot and disk.voted_for == node.node_id
                self._must(is_own, node, f"it asks for votes in {ballot} without its own on the drive")
            told = message.document_version
        else:
            return
        if not told <= stored:
            self._fail(node, f"it tells document {told} before it is durable")

    def on_reply(self, node: SimNode, reply: fx.Reply) -> None:
        """A reply leaves a node."""
        if reply.request_id not in node.open_requests:
            self._fail(node, f"second reply to request {reply.request_id}")
        message, disk = reply.message, node.drive.state
        if reply.request_id in node.denied_requests:
            self._deny(node, reply)
        if isinstance(message, HeartbeatResponse):
            told = message.document_version
            if told > disk.document_version:
                self._fail(node, f"it tells document {told} before it is durable")
            is_stored = (message.generation, message.term) <= disk.ballot
            self._must(is_stored, node, "it tells a term it has not stored")
        elif isinstance(message, RequestVoteResponse):
            if message.granted and not message.pre_vote:
                sender = node.open_requests[reply.request_id]
                is_durable = disk.ballot == (message.generation, message.term) and disk.voted_for == sender
                self._must(is_durable, node, f"its vote for {sender} is not on the drive")
        elif isinstance(message, PrepareResponse):
            if message.promised:
                kept = disk.promised is not None and message.epoch is not None
                assert disk.promised is None or message.epoch is not None
                kept = kept and disk.promised >= message.epoch  # type: ignore[operator]
                self._must(kept, node, f"its promise of {message.epoch} is not on the drive")
        elif isinstance(message, CommitResponse) and message.committed:
            self._must(disk.active == message.epoch, node, f"{message.epoch} is not durably active")

    def on_request(self, node: SimNode, request_id: int, sender: str) -> None:
        """A request reaches a node: whether its sender is denied is settled by what the node knows now."""
        assert node.machine is not None
        committed = node.machine._replica.committed
        if committed is not None and sender in committed.denied_node_ids:
            node.denied_requests.add(request_id)

    def _deny(self, node: SimNode, reply: fx.Reply) -> None:
        sender = node.open_requests[reply.request_id]
        for granted in ("accepted", "granted", "promised", "committed", "heard", "reached"):
            given = getattr(reply.message, granted, False)
            self._must(not given, node, f"it has {granted} what {sender} asked, who is denied")

    # -- workers and changes --------------------------------------------------------------------------

    def on_start_worker(self, node: SimNode, epoch: Epoch) -> None:
        """A worker is about to start."""
        self._must(node.worker is None, node, f"worker of {epoch} beside {node.worker}")
        if epoch.is_local:
            self._start_alone(node, epoch)
            return
        before = self.started.get(node.node_id)
        self._must(before is None or before < epoch, node, f"worker of {epoch} after {before}")
        self._must(epoch in self.committed_epochs, node, f"worker of {epoch}, which is not committed")
        self._must(node.disk.active == epoch, node, f"worker of {epoch}, which is not durably active")
        self.started[node.node_id] = epoch

    def _start_alone(self, node: SimNode, epoch: Epoch) -> None:
        self._must(epoch.seq == node.disk.local_seq, node, f"worker of {epoch}, which is not durably counted")
        before = self.started_alone.get(node.node_id)
        self._must(before is None or before < epoch, node, f"worker of {epoch} after {before}")
        election = node.up._election
        is_led = election.coordinator_id and election.hears_coordinator
        self._must(not is_led, node, f"worker of {epoch} in spite of a coordinator")
        self.started_alone[node.node_id] = epoch

    def on_stop_worker(self, node: SimNode, effect: fx.StopWorker) -> None:
        """A worker is about to be stopped, or retired for the plan that takes its place."""
        following = node.up._replica.slot._next_plan
        if effect.keep and following is not None and node.worker is not None:
            mine = following.stage_of(node.node_id)
            digest = mine[0].model.digest if mine is not None and mine[0].model is not None else ""
            self._must(digest == node.worker.digest, node, "a process is kept for a plan that cannot use it")

    def on_give_peers(self, node: SimNode, epoch: Epoch | None) -> None:
        """A worker is about to get the key of an epoch."""
        if epoch is None or not epoch.is_local:
            self._must(node.disk.active == epoch, node, f"peers of {epoch}, which is not active")

    def on_outcome(
        self, node: SimNode, outcome: fx.ChangeAccepted | fx.ChangeDone | fx.ChangeRejected
    ) -> None:
        """A change of somebody ends, or is accepted."""
        self._must(outcome.change_id in node.open_changes, node, f"change {outcome.change_id} ends twice")

    def _must(self, holds: bool, node: SimNode, what: str) -> None:
        if not holds:
            self._fail(node, what)

    def _fail(self, node: SimNode, what: str) -> NoReturn:
        """Say what is broken; for the checks of every step, that make no text where all is well."""
        raise InvariantBrokenError(f"{node.node_id}: {what}")
