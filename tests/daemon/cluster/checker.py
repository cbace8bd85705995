"""The invariants of a simulated cluster."""

from daemon.cluster.sim_parts import SimNode
from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.messages import Ballot, ClusterDocument, Epoch, Plan, Version
from macmesh_daemon.cluster.state import PersistentState


class InvariantBrokenError(AssertionError):
    """An invariant does not hold."""


class Checker:
    """The invariants, over everything that has ever happened in a world."""

    def __init__(self) -> None:
        self.coordinators: dict[Ballot, str] = {}
        self.plans: dict[Epoch, Plan] = {}
        self.committed: dict[Version, ClusterDocument] = {}
        self.committed_epochs: set[Epoch] = set()
        self.last_committed: Version = (0, 0, 0)
        self.started: dict[str, Epoch] = {}
        self.started_alone: dict[str, Epoch] = {}

    def on_persist(self, node: SimNode, new: PersistentState) -> None:
        old = node.disk
        self._must(new.ballot >= old.ballot, node, "its ballot fell")
        if new.ballot == old.ballot:
            self._must(old.voted_for in {"", new.voted_for}, node, "it voted twice in a term")
        self._must(new.document_version >= old.document_version, node, "its document went back")
        self._must(new.commit_version >= old.commit_version, node, "its commit went back")
        for name, before, after in (
            ("promise", old.promised, new.promised),
            ("active", old.active, new.active),
        ):
            self._must(
                before is None or (after is not None and after >= before), node, f"its {name} went back"
            )
        if new.active is not None:
            self._must(new.promised is not None and new.active <= new.promised, node, "active above promised")
        for plan in (new.promised_plan, new.active_plan, new.document.plan if new.document else None):
            if plan is not None and plan.epoch is not None:
                known = self.plans.setdefault(plan.epoch, plan)
                self._must(known == plan, node, f"two plans under epoch {plan.epoch}")

    def on_step(self, node: SimNode, machine: ClusterMachine) -> None:
        context = machine._context
        ballot = context.state.ballot
        if machine._coordinator is None or node.disk.ballot != ballot:
            return
        if ballot not in self.coordinators:
            self.coordinators[ballot] = node.node_id
        self._must(self.coordinators[ballot] == node.node_id, node, f"second coordinator of term {ballot}")
        version = context.state.commit_version
        is_durable = version <= node.disk.document_version  # what is told of it stands behind its Persist
        if version[:2] == ballot and version not in self.committed and is_durable:
            document = machine._replica.committed
            assert document is not None
            self._must(document.version == version, node, "it committed what it has not stored")
            self._must(
                version > self.last_committed, node, f"{version} after {self.last_committed} was committed"
            )
            before = self.committed.get(self.last_committed)
            if before is not None and before.plan is not None and before.plan.epoch is not None:
                kept = document.plan is not None and document.plan.epoch is not None
                self._must(kept, node, "the committed plan was lost")
                assert document.plan is not None
                assert document.plan.epoch is not None
                self._must(document.plan.epoch >= before.plan.epoch, node, "an older plan came back")
            if before is not None:
                names = {member.node_id for member in document.members}
                stay = {m.node_id for m in before.members} - set(document.denied_node_ids)
                self._must(names >= stay, node, "a committed member was lost")
                denied = set(document.denied_node_ids)
                self._must(denied >= set(before.denied_node_ids), node, "a denied node was let in")
                self._must(not denied & names, node, "a denied node is a member")
            self.committed[version] = document
            self.last_committed = version
            if document.plan is not None and document.plan.epoch is not None:
                self.committed_epochs.add(document.plan.epoch)

    def on_start_worker(self, node: SimNode, epoch: Epoch) -> None:
        self._must(node.worker is None, node, f"worker of {epoch} beside {node.worker}")
        if epoch.is_local:
            count = node.disk.local_seq
            self._must(epoch.seq == count, node, f"worker of {epoch}, which is not durably counted")
            before = self.started_alone.get(node.node_id)
            self._must(before is None or before < epoch, node, f"worker of {epoch} after {before}")
            led = node.up._election.coordinator_id and node.up._election.hears_coordinator
            self._must(not led, node, f"worker of {epoch} in spite of a coordinator")
            self.started_alone[node.node_id] = epoch
            return
        before = self.started.get(node.node_id)
        self._must(before is None or before < epoch, node, f"worker of {epoch} after {before}")
        self._must(epoch in self.committed_epochs, node, f"worker of {epoch}, which is not committed")
        self._must(node.disk.active == epoch, node, f"worker of {epoch}, which is not durably active")
        self.started[node.node_id] = epoch

    def _must(self, holds: bool, node: SimNode, what: str) -> None:
        if not holds:
            raise InvariantBrokenError(f"{node.node_id}: {what}")
