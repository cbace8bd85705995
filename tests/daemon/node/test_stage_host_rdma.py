"""What a stage's host does about RDMA devices: tells the worker of the library, and remembers what the worker tells."""

import asyncio
from pathlib import Path

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.clock import SystemClock
from macmesh_daemon.cluster import events
from macmesh_daemon.cluster.messages import Deployment, Epoch, Stage
from macmesh_daemon.cluster.state import PersistentState
from macmesh_daemon.eventlog.writer import EventLog
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.recorder import Recorder
from macmesh_daemon.node.stage_host import StageHost
from macmesh_daemon.node.sync_keeper import SyncKeeper
from macmesh_daemon.node.verbs_keeper import VerbsKeeper
from macmesh_daemon.supervisor.testing import FakeWorker
from macmesh_rdma.sync.mode import SyncPlatform
from macmesh_rdma.verbs.facts import VerbsFacts
from support.stand_ins import stand_in_credentials


class FaultyWorker(FakeWorker):
    """Its links damage what they carry."""

    def __init__(self) -> None:
        super().__init__()
        self.start_command: lane_pb2.StartStage | None = None

    async def start(self, start: lane_pb2.StartStage) -> None:
        self.start_command = start
        await super().start(start)
        fault = lane_pb2.RdmaFault(peer_stage=1, reason="a pattern arrived changed")
        for use in (lane_pb2.RdmaUse(setups=1), lane_pb2.RdmaUse(queue_pairs_made=3, faults=[fault])):
            self._events.put_nowait(lane_pb2.WorkerEvent(rdma_use=use))
        self._events.put_nowait(
            lane_pb2.WorkerEvent(
                report=peer_pb2.WorkerReport(epoch=start.epoch, state=peer_pb2.WORKER_STATE_FAILED, error="x")
            )
        )
        self._events.put_nowait(None)


async def test_what_a_worker_tells_of_rdma_devices_is_kept_under_the_peers_name(tmp_path: Path) -> None:
    async def ask(library: str) -> VerbsFacts:
        return VerbsFacts(refused=library)

    async def boot_id() -> str:
        return "b"

    async def provide(*_: object) -> Path:
        return tmp_path

    worker, stopped = FaultyWorker(), asyncio.Event()
    verbs = VerbsKeeper(tmp_path, library="/lib", setups_per_boot=1, ask=ask, read_boot_id=boot_id)
    credentials = stand_in_credentials()

    def notify(event: events.Event) -> None:
        if isinstance(event, events.WorkerStopped):
            stopped.set()

    log = EventLog(tmp_path, node_id="n", incarnation=1, clock=SystemClock())
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        host = StageHost(
            factory=lambda: worker,
            credentials=LiveCredentials(credentials),
            provide=provide,
            bind_host=lambda: "127.0.0.1",
            host_id="",
            step_deadline_seconds=1.0,
            sync=SyncKeeper(tmp_path, SyncPlatform("linux")),
            verbs=verbs,
            os_build="25C56",
            recorder=Recorder(log, PersistentState(), boot_nonce=1),
            notify=notify,
            tasks=tasks,
        )
        stages = tuple(Stage(index=index, node_id=f"node-{index}") for index in range(2))
        host.start(Epoch(1, 1, 1), Deployment(sync_mode="safe", stages=stages), 0)
        await stopped.wait()
    log.close()
    assert worker.start_command is not None
    assert (worker.start_command.verbs_library, worker.start_command.os_build) == ("/lib", "25C56")
    lines = verbs.health()
    assert "node-1 are in quarantine: a pattern arrived changed" in lines[0]
    assert lines[1].startswith("needs reboot: links over RDMA devices were set up 1 times")
    assert "3 queue pairs, of which 0 were freed" in lines[1]
    assert (await verbs.facts()).quarantine_of("node-1") == "a pattern arrived changed"
