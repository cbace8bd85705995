"""Simulated worker processes: they load, connect, crash, hang and stop."""

from typing import TYPE_CHECKING

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import WorkerReport, WorkerState

from .node import SimNode, Worker

if TYPE_CHECKING:
    from .simulation import Simulation


class Workers:
    """The worker processes of all nodes."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation

    def start(self, node: SimNode, effect: fx.StartWorker) -> None:
        """Start a process."""
        simulation = self._simulation
        simulation.checker.on_start_worker(node, effect.epoch)
        ids = tuple(stage.node_id for stage in effect.deployment.stages)
        worker = node.worker = Worker(effect.epoch, effect.stage_index, ids)
        worker.digest = effect.deployment.model.digest if effect.deployment.model is not None else ""
        rng = simulation.rng
        simulation.later(rng.uniform(0.0, 0.1), self.report, node, worker, WorkerState.LOADING)
        worker.hangs = bool(simulation.faults.worker_hang and rng.random() < simulation.faults.worker_hang)
        if not worker.hangs:
            simulation.later(rng.uniform(0.1, 0.6), self._load, node, worker)

    def stop(self, node: SimNode, effect: fx.StopWorker) -> None:
        """Stop a process; it is gone after a while."""
        seconds = self._simulation.rng.uniform(0.0, 0.3)
        self._simulation.later(seconds, self._gone, node, node.boots, node.worker, effect)

    def give_peers(self, node: SimNode, given: fx.GivePeers) -> None:
        """Hand a key to a process; those of an epoch that hold the same key connect."""
        simulation = self._simulation
        simulation.checker.on_give_peers(node, given.request.epoch)
        worker = node.worker
        if worker is None or worker.epoch != given.request.epoch:
            return
        worker.key = given.request.epoch_key
        group = [simulation.nodes[n].worker for n in worker.node_ids]
        if all(w is not None and w.epoch == worker.epoch and w.key == worker.key for w in group):
            for name, member in zip(worker.node_ids, group, strict=True):
                assert member is not None
                seconds = simulation.rng.uniform(0.0, 0.05)
                simulation.later(seconds, self._connect, simulation.nodes[name], member, member.key)

    def kill(self, node: SimNode) -> None:
        """Let a process end with an error."""
        if node.worker is not None:
            worker, node.worker = node.worker, None
            self._simulation.serving.heads.worker_gone(node, worker, "WORKER_FAILED")
            report = WorkerReport(worker.epoch, worker.stage_index, WorkerState.FAILED, error="killed")
            self._simulation.give(node, ev.WorkerReported(report))

    def report(self, node: SimNode, worker: Worker, state: WorkerState) -> None:
        """Let a process tell its state."""
        if node.worker is not worker:
            return
        worker.state = state
        address = f"{node.node_id}:{worker.epoch.seq + 9000}"
        report = WorkerReport(worker.epoch, worker.stage_index, state, 10, 10, address, address)
        self._simulation.give(node, ev.WorkerReported(report))

    def _load(self, node: SimNode, worker: Worker) -> None:
        simulation = self._simulation
        if node.worker is not worker:
            return
        if simulation.faults.worker_crash and simulation.rng.random() < simulation.faults.worker_crash:
            self.kill(node)
        else:
            self.report(node, worker, WorkerState.LOADED)

    def _gone(self, node: SimNode, boots: int, worker: Worker | None, effect: fx.StopWorker) -> None:
        if node.boots == boots:
            self._simulation.serving.heads.worker_gone(node, worker, "EPOCH_CHANGED")
            if node.worker is worker:
                node.worker = None
            self._simulation.give(node, ev.WorkerStopped(effect.epoch))

    def _connect(self, node: SimNode, worker: Worker, key: bytes) -> None:
        if worker.key == key:
            self.report(node, worker, WorkerState.READY)
