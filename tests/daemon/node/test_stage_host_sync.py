"""What a stage's host does about synchronisation: tells the worker, and learns from a hang."""

import asyncio
from pathlib import Path

import pytest

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.clock import SystemClock
from macmesh_daemon.cluster import events
from macmesh_daemon.cluster.messages import Deployment, Epoch
from macmesh_daemon.cluster.state import PersistentState
from macmesh_daemon.eventlog.writer import EventLog
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.recorder import Recorder
from macmesh_daemon.node.stage_host import StageHost
from macmesh_daemon.node.sync_keeper import SyncKeeper
from macmesh_daemon.supervisor.testing import FakeWorker
from macmesh_rdma.sync.mode import SyncPlatform
from support.stand_ins import stand_in_credentials

MAC = SyncPlatform("darwin", 26, "Apple M3 Ultra", "25C56", "0.32.4")
EPOCH = Epoch(1, 1, 1)


class HangingWorker(FakeWorker):
    """Ends as the supervisor tells of one: hung, or failed otherwise."""

    def __init__(self, *, hung: bool) -> None:
        super().__init__()
        self._hung = hung
        self.start_command: lane_pb2.StartStage | None = None

    async def start(self, start: lane_pb2.StartStage) -> None:
        self.start_command = start
        await super().start(start)
        self._events.put_nowait(
            lane_pb2.WorkerEvent(
                report=peer_pb2.WorkerReport(
                    epoch=start.epoch,
                    state=peer_pb2.WORKER_STATE_FAILED,
                    error="its loop did not turn",
                    sync_mode=start.sync_mode,
                    hung=self._hung,
                )
            )
        )
        self._events.put_nowait(None)


@pytest.mark.parametrize(
    ("requested", "hung", "quarantined"),
    [("fast", True, True), ("fast", False, False), ("safe", True, False), ("auto", True, False)],
)
async def test_only_a_hang_while_fast_is_in_force_puts_it_into_quarantine(
    requested: str, hung: bool, quarantined: bool, tmp_path: Path
) -> None:
    worker = HangingWorker(hung=hung)
    sync = SyncKeeper(tmp_path, MAC)
    stopped = asyncio.Event()

    def notify(event: events.Event) -> None:
        if isinstance(event, events.WorkerStopped):
            stopped.set()

    credentials = stand_in_credentials()
    log = EventLog(tmp_path, node_id="n", incarnation=1, clock=SystemClock())
    recorder = Recorder(log, PersistentState(), boot_nonce=1)

    async def provide(*_: object) -> Path:
        return tmp_path

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        host = StageHost(
            factory=lambda: worker,
            credentials=LiveCredentials(credentials),
            provide=provide,
            bind_host=lambda: "127.0.0.1",
            step_deadline_seconds=1.0,
            host_id="",
            sync=sync,
            recorder=recorder,
            notify=notify,
            tasks=tasks,
        )
        host.start(EPOCH, Deployment(sync_mode=requested), 0)
        await stopped.wait()
    assert worker.start_command is not None
    assert worker.start_command.sync_mode == ("fast" if requested == "fast" else "safe")
    assert worker.start_command.sync_reason
    decision = await sync.decide("fast")
    assert (decision.mode == "safe") == quarantined
    assert bool(sync.health()) == quarantined
