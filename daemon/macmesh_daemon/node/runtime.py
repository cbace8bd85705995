"""One running node: everything put together, started in order and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from macmesh_daemon.api.access_service import AccessService
from macmesh_daemon.api.cluster_service import ClusterService
from macmesh_daemon.api.inference_service import InferenceService
from macmesh_daemon.clock import Interruption, SystemClock
from macmesh_daemon.cluster.events import CandidateVerified, FactsChanged, LeaveWanted, LocalHealth
from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.messages import NodeFacts
from macmesh_daemon.cluster.settings import ClusterSettings
from macmesh_daemon.eventlog.reader import FOLDER_NAME as EVENTS_FOLDER
from macmesh_daemon.eventlog.writer import EventLog
from macmesh_daemon.files import FolderLock
from macmesh_daemon.hostinfo import collect_facts
from macmesh_daemon.identity import begin_start, load_or_create_identity
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.bulletin import Bulletin, BulletinBoard
from macmesh_daemon.node.candidates import CandidateDialer
from macmesh_daemon.node.changes import ChangeDesk
from macmesh_daemon.node.drills import Drills
from macmesh_daemon.node.driver import CoreDriver
from macmesh_daemon.node.head_schedule import HeadSchedule
from macmesh_daemon.node.interruptions import watch_interruptions
from macmesh_daemon.node.introduction import Introduction
from macmesh_daemon.node.listening import Doors, lanes_host
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.own_addresses import OwnAddresses
from macmesh_daemon.node.peer_service import PeerService
from macmesh_daemon.node.peers import PeerPool
from macmesh_daemon.node.planning import Planning
from macmesh_daemon.node.rdma_watch import RdmaWatch, system_reader
from macmesh_daemon.node.recorder import Recorder
from macmesh_daemon.node.requests import RequestDesk
from macmesh_daemon.node.sources import Sources, own_hosts
from macmesh_daemon.node.stage_host import StageHost
from macmesh_daemon.node.stage_stats import newest_stats
from macmesh_daemon.node.storage import StateStore
from macmesh_daemon.node.sync_keeper import SyncKeeper, sync_platform
from macmesh_daemon.node.transport import GrpcTransport
from macmesh_daemon.node.trust import Denied, Trust
from macmesh_daemon.node.trust_service import TrustService
from macmesh_daemon.node.verbs_keeper import VerbsKeeper
from macmesh_daemon.node.waiting import wait_for_membership
from macmesh_daemon.node.weights_client import GrpcWeights
from macmesh_daemon.node.weights_desk import WeightsDesk
from macmesh_daemon.weights.hub_source import HubSource
from macmesh_daemon.weights.library import Library
from macmesh_daemon.weights.serving import ServingLimits
from macmesh_daemon.weights.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from macmesh_daemon.config import Config
    from macmesh_daemon.identity import Start
    from macmesh_daemon.supervisor.interface import WorkerFactory

_log = get_logger(part="node")

#: Stopping in order takes at most this; then the process ends anyway. Below launchd's ExitTimeOut.
STOP_DEADLINE_SECONDS = 10.0


#: A node on which links over RDMA devices are demanded waits so long for what it can tell of them.
DEMANDED_DEADLINE_SECONDS = 20.0

#: The goodbye is one round trip; where nobody answers, the others find out by themselves.
LEAVE_DEADLINE_SECONDS = 2.0


class _StopRequested(Exception):  # noqa: N818  ends the task group, not an error
    pass


class Node:
    """A node between its start and its end. Made by `run_node`."""

    def __init__(
        self,
        *,
        config: Config,
        credentials: LiveCredentials,
        start: Start,
        facts: NodeFacts,
        health: Callable[[], tuple[str, ...]],
        worker_factory: WorkerFactory,
        tasks: asyncio.TaskGroup,
        store: StateStore,
        event_log: EventLog,
        hosts: tuple[str, ...],
        rdma: RdmaWatch,
        verbs: VerbsKeeper,
        read_hosts: Callable[[], Awaitable[tuple[str, ...]]] | None = None,
    ) -> None:
        self.config = config
        self.node_id = credentials.current.node_id
        self.cluster_prefix = credentials.current.cluster_prefix
        self.clock = SystemClock()
        self.board = BulletinBoard()
        self.peers = PeerPool(credentials)
        self.transport = GrpcTransport(self.peers)
        denied = Denied()
        self.doors = Doors(config, credentials, is_denied=denied)
        self._start = start
        self._facts = facts
        self._rdma = rdma
        self._verbs = verbs
        verbs.on_change = self._look_at_rdma
        self._host_health = health
        self._tasks = tasks
        self._store = store
        self._event_log = event_log
        self.addresses = OwnAddresses(
            hosts,
            self.doors.port,
            read=read_hosts or partial(own_hosts, config),
            clock=self.clock,
            changed=self._moved,
        )
        persistent = store.load()
        self.recorder = Recorder(event_log, persistent, boot_nonce=start.boot_nonce)
        machine = ClusterMachine(
            node_id=self.node_id,
            boot_nonce=start.boot_nonce,
            facts=facts,
            addresses=self.addresses.current,
            persistent=persistent,
            settings=cluster_settings(config),
            rng=random.Random(start.boot_nonce),  # noqa: S311  election jitter, no secret
            key_source=lambda: secrets.token_bytes(32),
            now=self.clock.now(),
            founder=credentials.current.founder,
            bootstrap_expect=config.bootstrap_expect,
        )
        self.driver = CoreDriver(
            machine=machine,
            store=store,
            clock=self.clock,
            transport=self.transport,
            recorder=self.recorder,
            event_log=event_log,
            board=self.board,
            tasks=tasks,
        )
        denied.read = lambda: self.driver.view
        self.introduction = Introduction(
            node_id=self.node_id,
            cluster_prefix=credentials.current.cluster_prefix,
            start=start,
            facts=lambda: self._facts,
            addresses=lambda: self.addresses.current,
            view=lambda: self.driver.view,
        )
        self.library = Library(
            ModelStore(config.resolved_weights_folder()),
            lambda: config.models_folders,
            config.data_dir / "weights-hashes",
        )
        self.weights_limits = ServingLimits(
            config.weights_serving_bytes_per_second, self._is_serving, self.clock
        )
        hub = HubSource(config.hub_endpoint)
        self.weights = WeightsDesk(
            node_id=self.node_id,
            library=self.library,
            resolve_path=self._resolve_path,
            peers=GrpcWeights(self.peers),
            members=self._reachable_members,
            hub=hub,
            cache_dir=config.data_dir / "profiles",
            clock=self.clock,
            announce=self._announce,
        )
        self.planning = Planning(
            config=config,
            node_id=self.node_id,
            facts=lambda: self._facts,
            peers=self.peers,
            library=self.library,
            hub=hub,
            obstacle=self.weights.obstacle,
            provide=self.weights.provide,
            notify=self.driver.notify,
            active_plan=lambda: self.driver.view.active_plan,
        )
        self.changes = ChangeDesk(driver=self.driver, peers=self.peers, node_id=self.node_id)
        platform = sync_platform(chip=facts.chip, mlx_version=facts.mlx_version)
        self._sync = SyncKeeper(config.data_dir, platform)
        self.stage_host = StageHost(
            factory=worker_factory,
            credentials=credentials,
            provide=self.weights.provide,
            bind_host=lambda: lanes_host(self.addresses.hosts),
            host_id=facts.host_id,
            step_deadline_seconds=config.step_deadline_seconds,
            rest_seconds=config.worker_rest_seconds,
            sync=self._sync,
            verbs=verbs,
            os_build=platform.macos_build,
            notify=self.driver.notify,
            recorder=self.recorder,
            tasks=tasks,
        )
        self.drills = Drills(
            allowed=config.drills,
            node_id=self.node_id,
            driver=self.driver,
            stage_host=self.stage_host,
            peers=self.peers,
        )
        self.driver.stage_host = self.stage_host
        self.driver.planning = self.planning
        self.driver.changes = self.changes
        self.requests = RequestDesk(node=self, tasks=tasks)
        self.head_schedule = HeadSchedule(partial(newest_stats, self), self.clock)
        self.driver.on_view = self.requests.look
        self._dialer = CandidateDialer(
            node_id=self.node_id,
            credentials=credentials,
            peers=self.peers,
            clock=self.clock,
            hello=self.introduction.hello,
            notify=self._verified,
            is_denied=denied,
            tasks=tasks,
        )
        self._sources = Sources(
            config=config,
            credentials=credentials.current,
            facts=facts,
            incarnation=start.incarnation,
            port=self.doors.port,
            clock=self.clock,
        )
        self.trust = Trust(
            config=config,
            credentials=credentials,
            driver=self.driver,
            peers=self.peers,
            sources=self._sources,
            gate=self.doors.gate,
            denied=denied,
            addresses=lambda: self.addresses.current,
            told_evicted=lambda: self._dialer.told_evicted,
            clock=self.clock,
        )
        self._looking: list[asyncio.Task[None]] = []

    async def serve(self) -> None:
        """Open the doors, look for peers and drive the core until cancelled."""
        for member in self.introduction.known_members():
            self.peers.learn(*member)
        self.doors.serve(
            PeerService(self),
            ClusterService(self),
            InferenceService(self),
            TrustService(self.trust.issuer),
            AccessService(self),
        )
        await self.doors.open()
        _log.info(
            "node started",
            addresses=self.addresses.current,
            socket=str(self.config.resolved_socket_path()),
            incarnation=self._start.incarnation,
        )
        self._tasks.create_task(self._event_log.run(), name="event log")
        self._tasks.create_task(self.driver.run(), name="cluster core")
        self._tasks.create_task(watch_interruptions(self.clock, self._looked), name="own health")
        self._tasks.create_task(self._sync.prepare(self.config.sync_mode), name="sync self-test")
        self._tasks.create_task(self.addresses.run(), name="own addresses")
        self._tasks.create_task(self.peers.tidy(), name="retired channels")
        self._tasks.create_task(self.peers.watch(self.transport.connection_lost), name="lost connections")
        self._tasks.create_task(self._rdma.run(self.clock, self._note_rdma), name="RDMA devices")
        self.trust.start(self._tasks)
        self._looking = self._sources.start(self._dialer.offer, self._tasks)

    async def leave(self, reason: str) -> None:
        """Tell the cluster that this node goes, so that it need not find out; waits a moment to be heard."""
        self.driver.left.clear()  # a drain may have said it once
        self.driver.notify(LeaveWanted(reason))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_DEADLINE_SECONDS):
                await self.driver.left.wait()

    async def close(self) -> None:
        """Stop in order: no new calls, no worker, no announcements, no channels."""
        _log.info("node stopping")
        for step in (self.doors.close, self.stage_host.close, self._stop_looking, self.peers.close):
            with contextlib.suppress(Exception):
                await step()

    async def _stop_looking(self) -> None:
        for task in self._looking:
            task.cancel()
        if self._looking:
            await asyncio.wait(self._looking)

    def health(self) -> tuple[str, ...]:
        """What this machine gives a person to know or do."""
        return (
            *self._host_health(),
            *self.trust.health(),
            *self._sync.health(),
            *self._verbs.health(),
            *self._sources.health(),
            *self.weights.health(),
        )

    def _resolve_path(self, model_id: str, path: str, digest: str) -> Path:
        return self.planning.resolve_path(model_id, path, digest)

    def _is_serving(self) -> bool:
        return self.requests.active > 0 or self.stage_host.is_serving

    def _reachable_members(self) -> tuple[str, ...]:
        """The other members, those that are not known to be gone; what each holds, it says itself."""
        view = self.driver.view
        members = view.document.members if view.document else ()
        gone = {"dead", "left", "incompatible"}
        return tuple(
            member.node_id
            for member in members
            if member.node_id != self.node_id and view.liveness.get(member.node_id) not in gone
        )

    def _announce(self, event: str, facts: dict[str, object]) -> None:
        self.recorder.announced(event, facts)
        self.board.post(Bulletin(time.time(), event, facts))

    def _look_at_rdma(self) -> None:
        self._tasks.create_task(self._rdma.look(), name="RDMA devices again")

    def _note_rdma(self, rdma_json: str) -> None:
        self._facts = replace(self._facts, rdma_json=rdma_json)
        self.driver.notify(FactsChanged(facts=self._facts))

    def _verified(self, event: CandidateVerified) -> None:
        self._sources.remember(event.node_id, event.addresses)
        self.driver.notify(event)

    def _moved(self) -> None:
        """This machine has other addresses: tell the core, the network and every node that is known."""
        self.driver.notify(self.introduction.to_itself())
        self._sources.refresh()
        self._greet_everybody()

    def _greet_everybody(self) -> None:
        self._dialer.greet_again([node_id for node_id, _ in self.introduction.known_members()])

    def _looked(self, found: Interruption | None) -> None:
        """Four times a second: what the node's own watch saw."""
        if found is not None:
            _log.warning("node was interrupted", kind=found.value)
            self.addresses.refresh()
            self._sources.refresh()
        if found is Interruption.SLEPT:
            self.peers.redial()
            self._greet_everybody()
        self._sources.set_lonely(not self.driver.view.coordinator_node_id)
        self.driver.notify(LocalHealth(score=0 if found is None else 1, slept=found is Interruption.SLEPT))


def cluster_settings(config: Config) -> ClusterSettings:
    """The core's times as the configuration sets them."""
    return ClusterSettings(
        heartbeat_seconds=config.heartbeat_interval_seconds,
        election_timeout_min_seconds=config.election_timeout_min_seconds,
        election_timeout_max_seconds=config.election_timeout_max_seconds,
        lease_seconds=config.lease_seconds,
        rpc_deadline_seconds=config.rpc_deadline_seconds,
        dead_after_seconds=config.dead_after_seconds,
        join_quiet_seconds=config.join_quiet_seconds,
        rebalance=config.rebalance,
        rebalance_min_gain=config.rebalance_min_gain,
    )


async def run_node(
    config: Config,
    *,
    stop: asyncio.Event,
    worker_factory: WorkerFactory,
    on_identity: Callable[[str], None] = lambda _node_id: None,
    on_ready: Callable[[], None] = lambda: None,
    read_hosts: Callable[[], Awaitable[tuple[str, ...]]] | None = None,
    rdma: RdmaWatch | None = None,
) -> None:
    """Run a node until `stop` is set; `on_ready` is called once both doors are open.

    `on_identity` is called with the node id as soon as it is known. A machine that belongs to no cluster, or
    whose certificate ended, waits: it answers `status` with what to do, and goes on once it has joined.

    Args:
        config: Its configuration.
        stop: Ends it.
        worker_factory: Makes its workers.
        on_identity: See above.
        on_ready: See above.
        read_hosts: Reads the machine's addresses; replaced in tests.
        rdma: Stands in for this machine's RDMA devices.

    Raises:
        LocalFolderInUseError: another daemon uses the data folder.
        LocalPortBusy: the port or the socket is taken.
        LocalStateCorrupt: the stored votes and promises cannot be trusted.
        IdentityError: this machine's files are broken.
    """
    with FolderLock.acquire(config.data_dir):
        identity = await asyncio.to_thread(load_or_create_identity, config.data_dir)
        on_identity(identity.node_id)
        if identity.replaced_node_id is not None:
            _log.warning("identity replaced", replaced=identity.replaced_node_id)
        credentials = await wait_for_membership(config, stop=stop, node_id=identity.node_id)
        if credentials is None:
            return
        start = await asyncio.to_thread(begin_start, config.data_dir)
        host = await collect_facts(config)
        hosts = await (read_hosts() if read_hosts is not None else own_hosts(config))
        platform = sync_platform(chip=host.facts.chip, mlx_version=host.facts.mlx_version)
        demanded = config.transport == "verbs"
        verbs = VerbsKeeper(
            config.data_dir,
            library=config.verbs_library,
            setups_per_boot=config.verbs_setups_per_boot,
            wanted=demanded,
        )
        watch = rdma or RdmaWatch(
            system_reader(macos_build=platform.macos_build, mlx_version=platform.mlx_version, verbs=verbs),
            changes=sys.platform == "darwin" or demanded,
            first_deadline_seconds=DEMANDED_DEADLINE_SECONDS if demanded else None,
        )
        facts = NodeFacts(**asdict(host.facts), rdma_json=await watch.first())
        event_log = EventLog(
            config.data_dir / EVENTS_FOLDER,
            node_id=identity.node_id,
            incarnation=start.incarnation,
            clock=SystemClock(),
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                node = Node(
                    config=config,
                    credentials=LiveCredentials(credentials),
                    start=start,
                    facts=facts,
                    health=lambda: host.problems,
                    worker_factory=worker_factory,
                    tasks=tasks,
                    store=StateStore(config.data_dir),
                    event_log=event_log,
                    hosts=hosts,
                    read_hosts=read_hosts,
                    rdma=watch,
                    verbs=verbs,
                )
                try:
                    await node.serve()
                    on_ready()
                    await stop.wait()
                    await node.leave("the daemon stops")
                finally:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(STOP_DEADLINE_SECONDS):
                            await node.close()
                raise _StopRequested  # noqa: TRY301  it ends the task group from inside
        except* _StopRequested:
            node.recorder.ended()
            _log.info("node stopped")
        finally:
            await asyncio.to_thread(event_log.close)
