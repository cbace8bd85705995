"""What becomes of a worker's process between two epochs, as the stage's host sees it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from macmesh_daemon.clock import SystemClock
from macmesh_daemon.cluster import events
from macmesh_daemon.cluster.messages import (
    Deployment,
    Epoch,
    ModelRef,
    SetPeersRequest,
    Stage,
    WorkerReport,
    WorkerState,
)
from macmesh_daemon.cluster.state import PersistentState
from macmesh_daemon.eventlog.checks import check
from macmesh_daemon.eventlog.reader import FOLDER_NAME, read_logs
from macmesh_daemon.eventlog.writer import EventLog
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.recorder import Recorder
from macmesh_daemon.node.stage_host import StageHost
from macmesh_daemon.node.sync_keeper import SyncKeeper
from macmesh_daemon.supervisor.testing import FakeWorker
from macmesh_rdma.sync.mode import SyncPlatform
from support.stand_ins import stand_in_credentials

MODEL = ModelRef("m", "/models/m", "digest")


def deployment(first: int = 0, end: int = 2, **changes: Any) -> Deployment:
    """A plan in which this node has the head, or the tail of four layers."""
    cut = end if first == 0 else first
    stages = (Stage(0, "a", 0, cut), Stage(1, "b", cut, 4))
    made = Deployment(MODEL, 4, 100, 1, 16, stages, "tcp", "safe")
    return dataclasses.replace(made, **changes)


class WatchedWorker(FakeWorker):
    """Tells when its process ends."""

    def __init__(self, changed: asyncio.Event, **options: Any) -> None:
        super().__init__(**options)
        self._changed = changed

    def _end(self, how: str) -> None:
        super()._end(how)
        self._changed.set()


class Bench:
    """One host with fake workers, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[FakeWorker] = []
        self.told: list[events.Event] = []
        self.changed = asyncio.Event()
        self.host: StageHost
        self.can_rest = True
        self.problem: Exception | None = None
        self.weights_are_here = asyncio.Event()
        self.weights_are_here.set()
        self.fetching = 0

    async def provide(self, *_: object) -> Path:
        """The folder of the model, once its weights are there."""
        if self.problem is not None:
            raise self.problem
        self.fetching += 1
        self.changed.set()
        await self.weights_are_here.wait()
        return self.folder

    def notify(self, event: events.Event) -> None:
        self.told.append(event)
        self.changed.set()

    def new_worker(self) -> FakeWorker:
        worker = WatchedWorker(self.changed, pid=1000 + len(self.workers), can_rest=self.can_rest)
        self.workers.append(worker)
        return worker

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def ready(self, seq: int, what: Deployment, stage: int = 0) -> WorkerReport:
        """Starts an epoch and brings it to READY."""
        epoch = Epoch(1, 1, seq)
        self.host.start(epoch, what, stage)
        await self.until(lambda: self.state_of(epoch) is WorkerState.LOADED)
        self.host.give_peers(SetPeersRequest(1, epoch, (), b"", 1))
        await self.until(lambda: self.state_of(epoch) is WorkerState.READY)
        return self.reports(epoch)[-1]

    async def ended(self, seq: int, *, keep: bool) -> WorkerReport:
        """Ends an epoch."""
        self.host.stop(Epoch(1, 1, seq), 2.0, keep=keep)
        await self.until(lambda: events.WorkerStopped(Epoch(1, 1, seq)) in self.told)
        return self.reports(Epoch(1, 1, seq))[-1]

    def reports(self, epoch: Epoch) -> list[WorkerReport]:
        told = [event.report for event in self.told if isinstance(event, events.WorkerReported)]
        return [report for report in told if report.epoch == epoch]

    def state_of(self, epoch: Epoch) -> WorkerState | None:
        return self.reports(epoch)[-1].state if self.reports(epoch) else None

    def recorded(self, *facts: str) -> list[tuple[Any, ...]]:
        """The records of workers: kind, last number of the epoch, and these facts."""
        return [
            (
                record.kind.removeprefix("worker "),
                record.facts["epoch"][2],
                *(record.facts.get(f) for f in facts),
            )
            for record in read_logs([self.folder])
            if record.kind.startswith("worker ")
        ]


@asynccontextmanager
async def bench(folder: Path, **options: float) -> AsyncIterator[Bench]:
    made = Bench(folder)
    credentials = stand_in_credentials()
    log = EventLog(folder / FOLDER_NAME, node_id="n", incarnation=1, clock=SystemClock())
    platform = SyncPlatform("darwin", 26, "Apple M3 Ultra", "25C56", "0.32.4")
    async with asyncio.TaskGroup() as tasks:
        made.host = StageHost(
            factory=made.new_worker,
            credentials=LiveCredentials(credentials),
            provide=made.provide,
            bind_host=lambda: "127.0.0.1",
            step_deadline_seconds=1.0,
            host_id="",
            sync=SyncKeeper(folder, platform),
            recorder=Recorder(log, PersistentState(), boot_nonce=1),
            notify=made.notify,
            tasks=tasks,
            **options,  # type: ignore[arg-type]  # times alone are given
        )
        yield made
        await made.host.close()
        log.flush()
    log.close()


async def test_the_process_takes_up_the_next_epoch_and_reads_what_is_missing(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        first = await made.ready(1, deployment(0, 2))
        assert (first.process, first.kept_bytes, first.resting) == ("new", 0, False)
        stopped = await made.ended(1, keep=True)
        assert (stopped.state, stopped.resting) == (WorkerState.STOPPED, True)
        second = await made.ready(2, deployment(1, 4), 1)
        assert (second.process, second.process_reason) == ("kept", "")
        assert 0 < second.kept_bytes < second.loaded_bytes
        assert len(made.workers) == 1
        await made.ended(2, keep=False)
        assert made.workers[0].pid is None
    assert made.recorded("pid", "process") == [
        ("started", 1, None, None),
        ("runs", 1, 1000, "new"),
        ("ready", 1, None, None),
        ("rests", 1, 1000, None),
        ("started", 2, None, None),
        ("runs", 2, 1000, "kept"),
        ("ready", 2, None, None),
        ("stopped", 2, None, None),
    ]


async def test_a_worker_that_lost_another_stage_is_given_the_next_one(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.ready(1, deployment(0, 2))
        made.workers[0].lose_peer()
        await made.until(lambda: events.WorkerStopped(Epoch(1, 1, 1)) in made.told)
        failed = made.reports(Epoch(1, 1, 1))[-1]
        assert (failed.state, failed.peer_lost, failed.resting) == (WorkerState.FAILED, True, True)
        again = await made.ready(2, deployment(0, 2))
        assert (again.process, again.kept_bytes) == ("kept", again.loaded_bytes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": ModelRef("m", "/models/m", "other")}, "another model is served"),
        ({"transport": "jaccl"}, "jaccl cannot be rebuilt in a living process"),
    ],
)
async def test_what_cannot_be_kept_is_gone_before_its_successor_runs(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    async with bench(tmp_path) as made:
        await made.ready(1, deployment())
        await made.ended(1, keep=True)
        report = await made.ready(2, deployment(**changes))
        assert (report.process, report.process_reason) == ("replaced", reason)
        assert [worker.pid for worker in made.workers] == [None, 1001]
    kinds = [(kind, epoch) for kind, epoch in made.recorded()]
    assert kinds.index(("dismissed", 1)) < kinds.index(("runs", 2))


async def test_another_synchronisation_needs_another_process(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.ready(1, deployment(sync_mode="auto"))
        await made.ended(1, keep=True)
        # As the self-test of the node decides while the plan asks for the same.
        resting = made.host._resting
        assert resting._resting is not None
        resting._resting = dataclasses.replace(resting._resting, sync_mode="fast")
        report = await made.ready(2, deployment(sync_mode="auto"))
        assert report.process == "replaced"
        assert report.process_reason == "synchronisation safe is in force in place of fast"
        assert [worker.pid for worker in made.workers] == [None, 1001]


async def test_a_process_is_replaced_that_did_not_come_to_rest_or_died(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.can_rest = False
        await made.ready(1, deployment())
        stopped = await made.ended(1, keep=True)
        assert not stopped.resting
        made.can_rest = True
        report = await made.ready(2, deployment())
        assert (report.process, report.process_reason) == ("replaced", "it did not come to rest within 2 s")
        await made.ended(2, keep=True)
        made.workers[-1].die()
        report = await made.ready(3, deployment())
        assert (report.process, report.process_reason) == (
            "replaced",
            "its process had ended while it rested",
        )
        await made.ended(3, keep=False)
        report = await made.ready(4, deployment())
        assert (report.process, report.process_reason) == ("new", "")


@pytest.mark.parametrize("how", ["time", "release", "stop", "close"])
async def test_a_process_that_nobody_needs_is_let_go(tmp_path: Path, how: str) -> None:
    async with bench(tmp_path, rest_seconds=0.05 if how == "time" else 60.0) as made:
        await made.ready(1, deployment())
        await made.ended(1, keep=True)
        if how == "release":
            made.host.release()
        elif how == "stop":
            made.host.stop(Epoch(1, 1, 1), 2.0)
        if how != "close":
            await made.until(lambda: made.workers[0].pid is None)
        else:
            await made.host.close()
        assert made.workers[0].pid is None
    assert made.recorded()[-1] == ("dismissed", 1)


async def test_a_stage_that_cannot_be_started_lets_the_resting_process_go(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.ready(1, deployment())
        await made.ended(1, keep=True)

        made.problem = FileNotFoundError("no model folder")
        made.host.start(Epoch(1, 1, 2), deployment(), 0)
        await made.until(lambda: events.WorkerStopped(Epoch(1, 1, 2)) in made.told)
        assert "no model folder" in made.reports(Epoch(1, 1, 2))[-1].error
        assert made.workers[0].pid is None
    assert ("dismissed", 1) in made.recorded()


@pytest.mark.parametrize("keep", [True, False])
async def test_a_stage_taken_away_while_its_weights_come_costs_no_resting_process(
    tmp_path: Path, *, keep: bool
) -> None:
    async with bench(tmp_path) as made:
        await made.ready(1, deployment())
        await made.ended(1, keep=True)
        made.weights_are_here.clear()
        made.host.start(Epoch(1, 1, 2), deployment(), 0)
        await made.until(lambda: made.fetching == 2)
        made.host.stop(Epoch(1, 1, 2), 2.0, keep=keep)
        await made.until(lambda: events.WorkerStopped(Epoch(1, 1, 2)) in made.told)
        assert (made.workers[0].pid is None) == (not keep)
        made.weights_are_here.set()
        report = await made.ready(3, deployment())
        assert report.process == ("kept" if keep else "new")
        assert len(made.workers) == (1 if keep else 2)
    assert [v for v in check(read_logs([tmp_path])).violations if v.invariant == 3] == []
