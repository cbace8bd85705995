"""Simulated worker processes: they load, connect, crash, hang, rest between two epochs and stop."""

from typing import TYPE_CHECKING

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import WorkerReport, WorkerState

from .node import SimNode, Worker

if TYPE_CHECKING:
    from .simulation import Simulation


REST_SECONDS = 120.0
"""A process that no plan takes up ends by itself."""


class Workers:
    """The worker processes of all nodes."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation

    def start(self, node: SimNode, effect: fx.StartWorker) -> None:
        """Start a process, or let the one that rests take the stage up."""
        simulation = self._simulation
        simulation.checker.on_start_worker(node, effect.epoch)
        node.resting = None
        ids = tuple(stage.node_id for stage in effect.deployment.stages)
        digest = effect.deployment.model.digest if effect.deployment.model is not None else ""
        worker = node.worker = Worker(effect.epoch, effect.stage_index, ids, digest)
        rng = simulation.rng
        simulation.later(rng.uniform(0.0, 0.1), self.report, node, worker, WorkerState.LOADING)
        worker.hangs = bool(simulation.faults.worker_hang and rng.random() < simulation.faults.worker_hang)
        if not worker.hangs:
            simulation.later(rng.uniform(0.1, 0.6), self._load, node, worker)

    def stop(self, node: SimNode, effect: fx.StopWorker) -> None:
        """Stop a process; it is gone, or rests, after a while."""
        self._simulation.checker.on_stop_worker(node, effect)
        seconds = self._simulation.rng.uniform(0.0, 0.3)
        self._simulation.later(seconds, self._gone, node, node.boots, node.worker, effect)

    def release(self, node: SimNode, effect: fx.ReleaseWorker) -> None:  # noqa: ARG002  there is one at most
        """End the process that rests."""
        node.resting = None

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
                if effect.keep and worker is not None:
                    node.resting = worker
                    self._simulation.later(REST_SECONDS, self._rested, node, worker)
            self._simulation.give(node, ev.WorkerStopped(effect.epoch))

    def _rested(self, node: SimNode, worker: Worker) -> None:
        if node.resting is worker:
            node.resting = None

    def _connect(self, node: SimNode, worker: Worker, key: bytes) -> None:
        if worker.key == key:
            self.report(node, worker, WorkerState.READY)
