"""Several real nodes in one process: real sockets and mutual TLS, fake workers."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import shutil
import tempfile
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from macmesh import AsyncClient, ClusterEvent, Timeouts
from macmesh_daemon.config import Config
from macmesh_daemon.demo.sizing import demo_link_settings
from macmesh_daemon.eventlog.checks import check
from macmesh_daemon.eventlog.reader import FOLDER_NAME, read_logs
from macmesh_daemon.identity import init_cluster, load_credentials, provision_node
from macmesh_daemon.models import resolve
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.models.profiler import profile_model
from macmesh_daemon.node.runtime import run_node
from macmesh_daemon.supervisor.testing import FakeWorker
from support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from macmesh.v1.cluster_pb2 import GetStatusResponse
    from macmesh.v1.peer_pb2 import WorkerReport
    from macmesh_daemon.eventlog.checks import Verdict
    from macmesh_daemon.node.rdma_watch import RdmaWatch
    from macmesh_placement import ModelProfile

LOOPBACK = "127.0.0.1"
DEADLINE_SECONDS = 120.0
RESERVE_BYTES = 1_000_000


@functools.cache
def demo_profile_cache() -> Path:
    """One folder for all tests of this process: the demo model is profiled once."""
    folder = Path(tempfile.mkdtemp(prefix="macmesh-test-profiles-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


async def profile_demo_model() -> ModelProfile:
    """The demo model's profile."""
    folder = await asyncio.to_thread(resolve, str(demo_model_folder()), ())
    return await profile_model(folder, demo_profile_cache(), deadline_seconds=120)


@dataclass(eq=False)
class MeshNode:
    """One node of a mesh: its configuration, its workers, and its task while it runs."""

    config: Config
    node_id: str
    workers: list[FakeWorker] = field(default_factory=list)
    make_worker: Callable[[], FakeWorker] = FakeWorker
    #: The machine's addresses, where a test lets it move; else the real ones.
    hosts: tuple[str, ...] = ()
    rdma: RdmaWatch | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def new_worker(self) -> FakeWorker:
        worker = self.make_worker()
        self.workers.append(worker)
        return worker

    async def _read_hosts(self) -> tuple[str, ...]:
        return self.hosts

    async def start(self) -> None:
        """Run the node; returns once its doors are open."""
        self.stop = asyncio.Event()
        ready = asyncio.Event()
        self.task = asyncio.create_task(
            run_node(
                self.config,
                stop=self.stop,
                worker_factory=self.new_worker,
                on_ready=ready.set,
                read_hosts=self._read_hosts if self.hosts else None,
                rdma=self.rdma,
            ),
            name=f"node {self.node_id[:8]}",
        )
        waiting = asyncio.create_task(ready.wait())
        done, _ = await asyncio.wait(
            {self.task, waiting}, timeout=DEADLINE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if waiting not in done:
            waiting.cancel()
            await self.task

    async def end(self) -> None:
        """Stop the node in order."""
        if self.task is not None:
            self.stop.set()
            task, self.task = self.task, None
            async with asyncio.timeout(DEADLINE_SECONDS):
                await task

    async def crash(self) -> None:
        """End the node as a killed process would: nothing is said to anybody."""
        if self.task is not None:
            task, self.task = self.task, None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def client(self, timeouts: Timeouts | None = None) -> AsyncClient:
        """A client of this node."""
        return AsyncClient(f"unix://{self.config.resolved_socket_path()}", timeouts=timeouts)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{LOOPBACK}:{self.config.listen_port}"

    async def status(self) -> GetStatusResponse:
        """The status that this node gives."""
        async with self.client() as client:
            return await client.status()


async def until(
    client: AsyncClient,
    condition: Callable[[GetStatusResponse], bool],
    what: str,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> GetStatusResponse:
    """The first status told to the client that satisfies the condition."""
    last: GetStatusResponse | None = None
    try:
        async with asyncio.timeout(deadline_seconds), aclosing(client.watch()) as updates:
            async for update in updates:
                if isinstance(update, ClusterEvent):
                    continue
                last = update
                if condition(update):
                    return update
    except TimeoutError:
        pass
    raise AssertionError(f"never {what}; last status: {last}")


def check_logs(folders: Sequence[Path]) -> Verdict:
    """Check the invariants over the nodes' event logs.

    Raises:
        AssertionError: One is broken.
    """
    verdict = check(read_logs(folders))
    assert not verdict.violations, "\n".join(map(str, verdict.violations))
    assert not verdict.gaps, verdict.gaps
    return verdict


class Mesh:
    """Some nodes of one cluster that find each other by static seeds."""

    def __init__(self, folder: Path, count: int, **settings: object) -> None:
        ports = free_ports(count)
        folders = [folder / f"n{i}" for i in range(count)]
        ca = init_cluster(folders[0])
        self.nodes: list[MeshNode] = []
        for index, (port, data_dir) in enumerate(zip(ports, folders, strict=True)):
            node_id = provision_node(data_dir, ca) if index else load_credentials(data_dir).node_id
            values: dict[str, object] = {
                "data_dir": data_dir,
                "socket_path": data_dir / "s",
                "listen_host": LOOPBACK,
                "listen_port": port,
                "join_port": 0,
                "mdns": False,
                "seeds": tuple(f"{LOOPBACK}:{other}" for other in ports if other != port),
                "bandwidth_probe": False,
                "bootstrap_expect": count,
                "usable_bytes": 400_000_000,
                "runtime_reserve_bytes": RESERVE_BYTES,
                **demo_link_settings(),
                **settings,
            }
            self.nodes.append(MeshNode(config=Config(**values), node_id=node_id))  # type: ignore[arg-type]

    async def __aenter__(self) -> Self:
        await profile_demo_model()
        for node in self.nodes:
            shutil.copytree(demo_profile_cache(), node.config.data_dir / "profiles")
        async with asyncio.TaskGroup() as tasks:
            for node in self.nodes:
                tasks.create_task(node.start())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            await node.end()
        if error is None:
            await asyncio.to_thread(
                check_logs,
                [n.config.data_dir for n in self.nodes if (n.config.data_dir / FOLDER_NAME).exists()],
            )

    async def until(
        self, node: MeshNode, condition: Callable[[GetStatusResponse], bool], what: str
    ) -> GetStatusResponse:
        """The first status of the node that satisfies the condition."""
        async with node.client() as client:
            return await until(client, condition, what)

    async def formed(self) -> GetStatusResponse:
        """Wait until the last node knows a coordinator and all members."""
        count = len(self.nodes)
        return await self.until(
            self.nodes[-1],
            lambda s: bool(s.coordinator_node_id) and s.has_quorum and len(s.document.members) == count,
            "formed",
        )

    def coordinator(self, status: GetStatusResponse) -> MeshNode:
        """The node that coordinates, by a status."""
        return next(n for n in self.nodes if n.node_id == status.coordinator_node_id)


def states(status: GetStatusResponse) -> list[WorkerReport]:
    """The workers' reports of a status."""
    return [n.worker for n in status.nodes if n.HasField("worker")]
