"""Several real drivers on a network in memory, in virtual time: the shell without sockets and processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from macmesh_daemon.clock import Interruption
from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.messages import Deployment, ModelRef, NodeFacts, Stage, WantedModel
from macmesh_daemon.cluster.settings import ClusterSettings
from macmesh_daemon.eventlog.reader import FOLDER_NAME, log_files
from macmesh_daemon.eventlog.writer import EventLog
from macmesh_daemon.node.bulletin import BulletinBoard
from macmesh_daemon.node.driver import CoreDriver
from macmesh_daemon.node.interruptions import watch_interruptions
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.recorder import Recorder
from macmesh_daemon.node.stage_host import StageHost
from macmesh_daemon.node.storage import StateStore
from macmesh_daemon.node.sync_keeper import SyncKeeper
from macmesh_daemon.node.testing import MemoryNetwork, Weather
from macmesh_daemon.supervisor.testing import FakeWorker
from macmesh_rdma.sync.mode import SyncPlatform
from support.mesh import check_logs
from support.stand_ins import stand_in_credentials
from support.virtual_loop import LoopClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from macmesh_daemon.cluster.messages import Epoch
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.eventlog.checks import Verdict

LAYERS = 24
EPOCH_UNIX_SECONDS = 1_700_000_000.0
_PLATFORM = SyncPlatform("linux", 6, "", "", "0.32.4")


def wanted_model(name: str = "m", stage_count: int = 0) -> WantedModel:
    """A wish for a model."""
    return WantedModel(ModelRef(name, f"/models/{name}", f"digest-{name}"), 1024, 1, "balanced", stage_count)


async def _weights_are_there(deployment: Deployment, *_: object) -> Path:
    return Path(deployment.model.path if deployment.model else "")


class EvenPlanner:
    """Spreads the layers evenly over the first members that are asked for; every check passes."""

    def __init__(self, notify: Callable[[ev.Event], None], node_id: str) -> None:
        self._notify = notify
        self._node_id = node_id

    async def compute(self, effect: fx.ComputePlan) -> None:
        """See `Planner`."""
        await asyncio.sleep(0.05)
        wanted = effect.wanted
        if wanted.stage_count > len(effect.members):
            self._notify(ev.PlanRefused(effect.request_id, "DOES_NOT_FIT", ""))
            return
        names = sorted(m.node_id for m in effect.members)[: wanted.stage_count or None]
        edges = [LAYERS * i // len(names) for i in range(len(names) + 1)]
        stages = tuple(Stage(i, n, edges[i], edges[i + 1]) for i, n in enumerate(names))
        plan = Deployment(wanted.model, LAYERS, wanted.context_tokens, 1, 256, stages, "tcp", "safe")
        self._notify(ev.PlanComputed(effect.request_id, plan))

    async def check_prepare(self, effect: fx.CheckPrepare) -> None:
        """See `Planner`."""
        assert effect.plan.epoch is not None
        self._notify(ev.PrepareChecked(effect.plan.epoch, ok=True, reason=""))


class Outcomes:
    """What became of changes, by id."""

    def __init__(self) -> None:
        self.futures: dict[int, asyncio.Future[Epoch | fx.ChangeRejected]] = {}

    def resolve(self, effect: fx.ChangeAccepted | fx.ChangeDone | fx.ChangeRejected) -> None:
        """See `ChangeResolver`."""
        future = self.futures.get(effect.change_id)
        if future is not None and not future.done() and not isinstance(effect, fx.ChangeAccepted):
            future.set_result(effect.epoch if isinstance(effect, fx.ChangeDone) else effect)


class VirtualNode:
    """One node: its folder, and while it is up its driver and workers."""

    def __init__(self, mesh: VirtualMesh, node_id: str, *, founder: bool) -> None:
        self.node_id = node_id
        self.folder = mesh.folder / node_id
        self.workers: list[FakeWorker] = []
        self.clock = LoopClock()
        self._mesh = mesh
        self._founder = founder
        self._boots = 0
        self._boot_nonce = 0
        self._facts = NodeFacts(hostname=node_id, host_id=node_id, macmesh_version="1", usable_bytes=1 << 36)
        self._task: asyncio.Task[None] | None = None
        self._log: EventLog
        self._changes = itertools.count(1)
        self.outcomes = Outcomes()
        self.driver: CoreDriver

    @property
    def is_up(self) -> bool:
        return self._task is not None

    @property
    def view(self) -> ClusterView:
        return self.driver.view

    @property
    def member_count(self) -> int:
        """Members, as this node knows."""
        document = self.view.document
        return len(document.members) if document else 0

    @property
    def plan_nodes(self) -> tuple[str, ...]:
        """Nodes of the plan, as this node knows."""
        plan = self.view.plan
        return plan.node_ids if plan else ()

    def introduction(self) -> ev.CandidateVerified:
        """What a Hello tells of this node."""
        return ev.CandidateVerified(
            self.node_id,
            (f"{self.node_id}:1",),
            self._facts,
            self._boot_nonce,
            "static",
            has_cluster=self.view.stored_document is not None,
        )

    def start(self) -> None:
        """Begin; the node is up at once."""
        self._boots += 1
        self._boot_nonce = self._mesh.rng.getrandbits(63)
        self._task = asyncio.create_task(self._run(), name=self.node_id)

    async def crash(self) -> None:
        """End as a killed process does."""
        await self._halt(ended=False)

    async def end(self) -> None:
        """Leave and stop in order."""
        self.driver.notify(ev.LeaveWanted("the test ends"))
        await self.driver.left.wait()
        await self.host.close()
        await asyncio.sleep(0.01)
        await self._halt(ended=True)

    async def _halt(self, *, ended: bool) -> None:
        assert self._task is not None
        self._mesh.network.leave(self.node_id)
        if ended:
            self.recorder.ended()
        self._log.close()
        task, self._task = self._task, None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def change(self, make: Callable[[int], ev.Event]) -> Epoch | fx.ChangeRejected:
        """Ask this node's core for a change."""
        change_id = next(self._changes)
        future: asyncio.Future[Epoch | fx.ChangeRejected] = asyncio.get_running_loop().create_future()
        self.outcomes.futures[change_id] = future
        self.driver.notify(make(change_id))
        async with asyncio.timeout(60):
            return await future

    async def _run(self) -> None:
        mesh, store = self._mesh, StateStore(self.folder)
        state = store.load()
        self._log = EventLog(
            self.folder / FOLDER_NAME,
            node_id=self.node_id,
            incarnation=self._boots,
            clock=self.clock,
            wall_seconds=mesh.wall_seconds,
        )
        self.recorder = Recorder(self._log, state, boot_nonce=self._boot_nonce)
        machine = ClusterMachine(
            node_id=self.node_id,
            boot_nonce=self._boot_nonce,
            facts=self._facts,
            addresses=(f"{self.node_id}:1",),
            persistent=state,
            settings=mesh.settings,
            rng=random.Random(mesh.rng.getrandbits(32)),  # noqa: S311  no secret
            key_source=lambda: mesh.rng.randbytes(32),
            now=self.clock.now(),
            founder=self._founder,
            bootstrap_expect=mesh.count,
        )
        async with asyncio.TaskGroup() as tasks:
            driver = self.driver = CoreDriver(
                machine=machine,
                store=store,
                clock=self.clock,
                transport=mesh.network.join(self.node_id),
                recorder=self.recorder,
                event_log=self._log,
                board=BulletinBoard(),
                tasks=tasks,
                wall_seconds=mesh.wall_seconds,
            )
            self.host = driver.stage_host = StageHost(
                factory=self._new_worker,
                credentials=LiveCredentials(stand_in_credentials(self.node_id)),
                provide=_weights_are_there,
                bind_host=lambda: "127.0.0.1",
                host_id=self.node_id,
                step_deadline_seconds=1.0,
                sync=SyncKeeper(self.folder, _PLATFORM),
                notify=driver.notify,
                recorder=self.recorder,
                tasks=tasks,
            )
            driver.planning = EvenPlanner(driver.notify, self.node_id)
            driver.changes = self.outcomes
            tasks.create_task(self._log.run(), name="log")
            tasks.create_task(driver.run(), name="core")
            tasks.create_task(watch_interruptions(self.clock, self._looked), name="health")
            tasks.create_task(self._look_for_peers(), name="dialer")

    def _new_worker(self) -> FakeWorker:
        worker = FakeWorker(pid=4_000_000 + len(self.workers))
        self.workers.append(worker)
        return worker

    def _looked(self, found: Interruption | None) -> None:
        self.driver.notify(ev.LocalHealth(score=0 if found is None else 1, slept=found is Interruption.SLEPT))

    async def _look_for_peers(self) -> None:
        network = self._mesh.network
        while True:
            for other in self._mesh.nodes:
                there_and_back = network.is_joined(self.node_id, other.node_id) and network.is_joined(
                    other.node_id, self.node_id
                )
                if other is not self and other.is_up and there_and_back:
                    self.driver.notify(other.introduction())
            await asyncio.sleep(1.0)


class VirtualMesh:
    """Some nodes of one cluster. Same seed, same course."""

    def __init__(
        self, folder: Path, count: int, *, seed: int = 1, weather: Weather | None = None, **settings: Any
    ) -> None:
        self.folder = folder
        self.count = count
        self.rng = random.Random(seed)  # noqa: S311  no secret
        self.settings = ClusterSettings(**settings)
        chance = random.Random(seed + 1)  # noqa: S311  no secret
        self.network = MemoryNetwork(chance, weather or Weather())
        self.nodes = [VirtualNode(self, f"node-{c}", founder=not i) for i, c in enumerate("abcdefg"[:count])]

    async def __aenter__(self) -> Self:
        for node in self.nodes:
            node.start()
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        for node in self.nodes:
            if node.is_up:
                await (node.end() if error is None else node.crash())
        await self.network.close()
        if error is None:
            self.check()

    def check(self) -> Verdict:
        """Check the event logs as they are now."""
        return check_logs([node.folder for node in self.nodes])

    @staticmethod
    def wall_seconds() -> float:
        return EPOCH_UNIX_SECONDS + asyncio.get_running_loop().time()

    @property
    def up(self) -> list[VirtualNode]:
        return [node for node in self.nodes if node.is_up]

    def trace(self) -> str:
        """Everything that every log holds."""
        return "".join(p.read_text() for n in self.nodes for p in log_files(n.folder))

    async def until(self, condition: Callable[[], bool], what: str, within_seconds: float = 60.0) -> float:
        """Let time pass until the condition holds; returns how long it took."""
        begun = asyncio.get_running_loop().time()
        while not condition():
            passed = asyncio.get_running_loop().time() - begun
            assert passed < within_seconds, f"not within {within_seconds} s: {what}"
            await asyncio.sleep(0.01)
        return asyncio.get_running_loop().time() - begun

    def leader(self, nodes: list[VirtualNode] | None = None) -> VirtualNode | None:
        """Which of these nodes all of them follow, with a quorum; None where there is none."""
        found = nodes or self.up
        ids = {n.view.coordinator_node_id for n in found if n.view.has_quorum}
        agreed = len(ids) == 1 and all(n.view.has_quorum for n in found)
        return next((n for n in found if {n.node_id} == ids), None) if agreed else None

    async def led(self, nodes: list[VirtualNode] | None = None) -> VirtualNode:
        """Wait until all of these follow one coordinator."""
        await self.until(lambda: self.leader(nodes) is not None, "led")
        leader = self.leader(nodes)
        assert leader is not None
        return leader

    def is_ready(self, nodes: list[VirtualNode] | None = None) -> bool:
        """Whether the plan serves, as all of these see it."""
        return all(n.view.serving_state == "ready" for n in nodes or self.up)
