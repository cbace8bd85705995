"""A cluster of real daemons on loopback, or one per machine of a `Lan`."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from typing import TYPE_CHECKING, TypedDict, TypeVar

import psutil

from faults.results import LocalOutcomeWrongError
from macmesh import AsyncClient, MacmeshError, Timeouts
from macmesh_daemon.config import Config
from macmesh_daemon.demo.nodes import DemoNode, free_ports, toml_of
from macmesh_daemon.demo.scenario import RUNTIME_RESERVE_BYTES
from macmesh_daemon.demo.sizing import demo_link_settings, demo_reserves, usable_bytes_for
from macmesh_daemon.eventcheck import describe
from macmesh_daemon.eventlog.checks import check
from macmesh_daemon.eventlog.reader import FILE_NAME, FOLDER_NAME, read_logs
from macmesh_daemon.eventlog.records import Kind, Record
from macmesh_daemon.hostinfo import collect_facts
from macmesh_daemon.hostinfo.probe import FILE_NAME as BANDWIDTH_FILE
from macmesh_daemon.hostinfo.probe import BandwidthRecord, write_record
from macmesh_daemon.identity import init_cluster, load_credentials, provision_node
from macmesh_daemon.models.demo import demo_model_folder
from support import mesh

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from faults.network import Lan
    from macmesh import ClusterStatus

MODEL = str(demo_model_folder())
CONTEXT_TOKENS = 2048
PORT = 27450
START_DEADLINE_SECONDS = 60.0
#: Between two looks at a log or a status: the resolution of every figure.
LOOK_SECONDS = 0.02
_QUICK = Timeouts(status=1.0)

T = TypeVar("T")


def now() -> float:
    """Seconds of the clock of the event logs: one machine, so all nodes' are one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Node(DemoNode):
    """One daemon, and its place in the network."""

    def __init__(self, folder: Path, node_id: str, address: str, namespace: str = "") -> None:
        launcher = ("ip", "netns", "exec", namespace) if namespace else ()
        super().__init__(folder, node_id, launcher=launcher)
        self.socket_path = folder / "s"
        self.address = address
        self.machine = namespace
        self._read: list[Record] = []
        self._read_bytes = 0

    @property
    def name(self) -> str:
        """Short, for messages."""
        return self.folder.name

    def process(self) -> psutil.Process:
        """The daemon."""
        if self.pid is None:
            raise LocalOutcomeWrongError(f"{self.name} does not run:\n{self.log_tail()}")
        return psutil.Process(self.pid)

    def worker(self) -> psutil.Process:
        """Its only worker."""
        found = [p for p in self.process().children() if "macmesh_daemon.worker.main" in p.cmdline()]
        if len(found) != 1:
            raise LocalOutcomeWrongError(f"{self.name} has {len(found)} workers, not one")
        return found[0]

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.signal(signal.SIGKILL)
        await self.wait(5)

    async def up(self) -> None:
        """Start the daemon and wait until it answers."""
        await self.start()
        await self.ready(START_DEADLINE_SECONDS)

    def records(self) -> list[Record]:
        """Its event log, as far as it is written: the newest file of it, which suffices for a scenario."""
        with (
            contextlib.suppress(FileNotFoundError),
            (self.folder / FOLDER_NAME / FILE_NAME).open("rb") as log,
        ):
            log.seek(self._read_bytes)
            whole, newline, _ = log.read().rpartition(b"\n")
            self._read_bytes += len(whole) + len(newline)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError):  # torn by a kill
                    self._read.append(Record.from_line(line.decode()))
        return self._read

    async def status(self) -> ClusterStatus | None:
        """What it tells a client; None where it does not answer."""
        with contextlib.suppress(MacmeshError):
            async with AsyncClient(f"unix://{self.socket_path}", timeouts=_QUICK) as client:
                return await client.status()
        return None


class Cluster:
    """Daemons of one certificate authority; `stop` leaves nothing running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[Node] = []
        #: Those that came later by a join.
        self.joined: list[Node] = []

    async def prepare(
        self,
        count: int,
        *,
        lan: Lan | None = None,
        machines: Sequence[str] = (),
        stages: int = 2,
        mdns: bool = False,
        seeds: bool = True,
        folders: Mapping[int, Path] | None = None,
        overrides: Mapping[int, Mapping[str, object]] | None = None,
        **settings: object,
    ) -> None:
        """Make folders, certificates and configurations.

        Args:
            count: Nodes.
            lan: The network; None for loopback.
            machines: The names of the nodes' machines in it.
            stages: Nodes that the demo's model needs.
            mdns: Find each other by multicast.
            seeds: Know each other's addresses from the start.
            folders: Data folders that are not made below the cluster's own.
            overrides: Settings of single nodes.
            settings: Those of all.
        """
        profile = await mesh.profile_demo_model()
        reserves = demo_reserves(RUNTIME_RESERVE_BYTES)
        usable_bytes = await asyncio.to_thread(usable_bytes_for, profile, stages, CONTEXT_TOKENS, reserves)
        places = [(folders or {}).get(i, self.folder / f"n{i + 1}") for i in range(count)]
        if lan is None:
            addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
        else:
            addresses = [f"{await lan.add(name)}:{PORT}" for name in machines]
        ca = init_cluster(places[0])
        for index, place in enumerate(places):
            node_id = provision_node(place, ca) if index else load_credentials(place).node_id
            node = Node(place, node_id, addresses[index], machines[index] if lan else "")
            host, _, port = addresses[index].rpartition(":")
            values: dict[str, object] = {
                "data_dir": str(place),
                "socket_path": str(node.socket_path),
                "listen_host": "0.0.0.0" if lan else host,  # noqa: S104  on a network of the scenario's own
                "listen_port": int(port),
                "join_port": 0,
                "mdns": mdns,
                "seeds": [a for a in addresses if a != node.address] if seeds else [],
                "usable_bytes": usable_bytes,
                "runtime_reserve_bytes": RUNTIME_RESERVE_BYTES,
                "bandwidth_probe": False,
                "bootstrap_expect": count,
                "log_format": "json",
                **demo_link_settings(),
                **settings,
                **(overrides or {}).get(index, {}),
            }
            node.config_path.write_text(toml_of(values), "utf-8")
            shutil.copytree(mesh.demo_profile_cache(), place / "profiles")
            self.nodes.append(node)

    async def start(self, nodes: Sequence[Node] = ()) -> None:
        """Start these, or all, and wait until they answer."""
        async with asyncio.TaskGroup() as tasks:
            for node in nodes or self.nodes:
                tasks.create_task(node.up(), name=f"start {node.name}")

    async def stop(self) -> None:
        """End all daemons."""
        for node in self.everybody:
            node.signal(signal.SIGCONT)
        async with asyncio.TaskGroup() as tasks:
            for node in self.everybody:
                tasks.create_task(node.stop(), name=f"stop {node.name}")

    @property
    def everybody(self) -> list[Node]:
        """The first nodes and those that joined."""
        return [*self.nodes, *self.joined]

    def named(self, node_id: str) -> Node:
        """The node of an id."""
        return next(node for node in self.everybody if node.node_id == node_id)

    async def formed(self, deadline_seconds: float = 30.0) -> Node:
        """Wait until all nodes follow one coordinator, which finds all of them alive; returns it."""
        live = [node for node in self.everybody if node.pid is not None]
        wanted = {node.node_id for node in live}

        async def agreed() -> Node | None:
            statuses = [await node.status() for node in live]
            leaders = {s.coordinator_node_id if s and s.has_quorum else "" for s in statuses}
            if len(leaders) != 1 or not leaders <= wanted or "" in leaders:
                return None
            leader = self.named(leaders.pop())
            status = next(s for s, n in zip(statuses, live, strict=True) if n is leader)
            assert status is not None
            alive = {n.member.node_id for n in status.nodes if n.liveness == "alive"}
            return leader if alive >= wanted else None

        return await eventually(agreed, "one coordinator with everybody alive", deadline_seconds)

    async def load(self, through: Node) -> ClusterStatus:
        """Serve the demo's model."""
        async with through.client() as client:
            await client.load(MODEL, context_tokens=CONTEXT_TOKENS)
            return await client.status()

    async def serving(self, node: Node, deadline_seconds: float = 30.0) -> ClusterStatus:
        """Wait until a node says that the model is ready."""

        async def ready() -> ClusterStatus | None:
            status = await node.status()
            return status if status is not None and status.serving_state == "ready" else None

        return await eventually(ready, "ready to serve", deadline_seconds)

    def checked(self, *, but: Sequence[Node] = ()) -> str:
        """Check the invariants over all event logs.

        Raises:
            LocalOutcomeWrongError: One is broken.
        """
        places = [n.folder for n in self.everybody if n not in but and (n.folder / FOLDER_NAME).exists()]
        verdict = check(read_logs(places))
        if verdict.violations:
            raise LocalOutcomeWrongError("\n".join(map(str, verdict.violations)))
        return describe(verdict)


class Speed(TypedDict):
    """How fast nodes take their memory for."""

    bandwidth_probe: bool
    probe_cache_dir: str


async def believing(folder: Path, gb_per_s: float) -> Speed:
    """Settings of nodes that take their memory for so fast, as if it had been measured.

    What the tiny model is split for is what a large one is split for on a machine of that speed.
    """
    facts = (await collect_facts(Config(bandwidth_probe=False))).facts
    record = BandwidthRecord(f"{facts.chip}/{facts.ram_bytes}/{facts.cpu_count}", gb_per_s)
    await asyncio.to_thread(write_record, folder / BANDWIDTH_FILE, record)
    return Speed(bandwidth_probe=True, probe_cache_dir=str(folder))


async def eventually(look: Callable[[], Awaitable[T | None]], what: str, deadline_seconds: float) -> T:
    """What `look` gives once it is not None.

    Raises:
        LocalOutcomeWrongError: It is None still at the deadline.
    """
    until = now() + deadline_seconds
    while True:
        found = await look()
        if found is not None:
            return found
        if now() > until:
            raise LocalOutcomeWrongError(f"never within {deadline_seconds:g} s: {what}")
        await asyncio.sleep(LOOK_SECONDS)


async def told(
    nodes: Sequence[Node],
    condition: Callable[[Record], bool],
    what: str,
    *,
    since: float,
    deadline_seconds: float = 20.0,
) -> Record:
    """The first record after a moment, in any of these nodes' logs, that satisfies the condition."""

    async def look() -> Record | None:
        found = [r for n in nodes for r in n.records() if r.mono >= since and condition(r)]
        return min(found, key=lambda r: r.mono, default=None)

    return await eventually(look, what, deadline_seconds)


def announced(event: str, **facts: object) -> Callable[[Record], bool]:
    """The condition that a record tells this decision."""

    def condition(record: Record) -> bool:
        given = record.facts.get("facts") or {}
        return (
            record.kind == Kind.ANNOUNCED
            and record.facts.get("event") == event
            and all(given.get(k) == v for k, v in facts.items())
        )

    return condition
