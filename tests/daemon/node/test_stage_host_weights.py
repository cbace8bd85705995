"""What a stage's host does while the weights are brought here: tells how it goes, and stops when it is told to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from macmesh_daemon.clock import SystemClock
from macmesh_daemon.cluster import events
from macmesh_daemon.cluster.messages import Deployment, Epoch, FetchProgress, WorkerState
from macmesh_daemon.cluster.state import PersistentState
from macmesh_daemon.eventlog.writer import EventLog
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.recorder import Recorder
from macmesh_daemon.node.stage_host import StageHost
from macmesh_daemon.node.sync_keeper import SyncKeeper
from macmesh_daemon.supervisor.testing import FakeWorker
from macmesh_daemon.weights.errors import RemoteNoSourceError
from macmesh_rdma.sync.mode import SyncPlatform
from support.stand_ins import stand_in_credentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EPOCH = Epoch(1, 1, 1)


class Providing:
    """Fetches until it is let go."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self._folder = folder
        self._error = error
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.was_cancelled = False

    async def __call__(
        self, _deployment: Deployment, _stage: int, told: Callable[[FetchProgress], None]
    ) -> Path:
        told(FetchProgress(total_bytes=100, disk_bytes=10))
        told(FetchProgress(total_bytes=100, disk_bytes=10, peer_bytes=30, source_node_ids=("x",)))
        self.began.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        if self._error is not None:
            raise self._error
        return self._folder


class Bench:
    def __init__(self, folder: Path, providing: Providing, tasks: asyncio.TaskGroup) -> None:
        self.worker = FakeWorker()
        self.heard: list[events.Event] = []
        self.stopped = asyncio.Event()
        log = EventLog(folder, node_id="n", incarnation=1, clock=SystemClock())
        self.host = StageHost(
            factory=lambda: self.worker,
            credentials=LiveCredentials(stand_in_credentials("n")),
            provide=providing,
            bind_host=lambda: "127.0.0.1",
            step_deadline_seconds=1.0,
            host_id="",
            sync=SyncKeeper(folder, SyncPlatform("linux", 0, "", "", "0")),
            recorder=Recorder(log, PersistentState(), boot_nonce=1),
            notify=self._notify,
            tasks=tasks,
        )

    def _notify(self, event: events.Event) -> None:
        self.heard.append(event)
        if isinstance(event, events.WorkerStopped):
            self.stopped.set()

    @property
    def reports(self) -> list[tuple[WorkerState, int, int]]:
        found = [e.report for e in self.heard if isinstance(e, events.WorkerReported)]
        return [(r.state, r.loaded_bytes, r.total_bytes) for r in found if r is not None]


async def test_a_fetch_is_told_as_part_of_loading_and_ends_with_the_stage(tmp_path: Path) -> None:
    providing = Providing(tmp_path)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        bench = Bench(tmp_path, providing, tasks)
        bench.host.start(EPOCH, Deployment(), 0)
        await providing.began.wait()
        assert bench.reports == [(WorkerState.LOADING, 10, 100), (WorkerState.LOADING, 40, 100)]
        bench.host.stop(EPOCH, 1.0)
        await bench.stopped.wait()
    assert providing.was_cancelled
    assert bench.worker.started_with is None
    assert len(bench.reports) == 2, "a stage that was taken away has not failed"


@pytest.mark.parametrize("error", [None, RemoteNoSourceError("nobody has it")])
async def test_the_worker_starts_when_all_is_there_or_the_reason_is_told(
    error: Exception | None, tmp_path: Path
) -> None:
    providing = Providing(tmp_path, error)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        bench = Bench(tmp_path, providing, tasks)
        bench.host.start(EPOCH, Deployment(), 0)
        await providing.began.wait()
        providing.go_on.set()
        if error is None:
            while bench.worker.started_with is None:  # noqa: ASYNC110  the fake has no event for it
                await asyncio.sleep(0)
            bench.host.stop(EPOCH, 1.0)
        await bench.stopped.wait()
    if error is None:
        assert bench.worker.started_with is not None
        assert bench.worker.started_with.model_path == str(tmp_path)
    else:
        last = [e.report for e in bench.heard if isinstance(e, events.WorkerReported)][-1]
        assert last is not None
        assert last.state is WorkerState.FAILED
        assert "nobody has it" in last.error
