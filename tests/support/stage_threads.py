"""The stages of a plan as threads of one process, with runners and loops as in workers."""

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bringing_up import KEY, SMALL, endpoints_of, in_threads, listeners
from macmesh.v1 import lane_pb2, types_pb2
from macmesh_daemon.engine.cache_house import CacheHouse
from macmesh_daemon.engine.stage import StageModel, load_stage
from macmesh_daemon.engine.steps import Step
from macmesh_daemon.worker.convert_steps import step_from_wire, step_to_wire
from macmesh_daemon.worker.graph_runner import GraphFollowerRunner, GraphHeadRunner
from macmesh_daemon.worker.graph_transfers import GraphTransfers
from macmesh_daemon.worker.local_runner import LocalRunner
from macmesh_daemon.worker.loops import FollowerLoop, HeadLoop, Item, Outlets, Schedule, pong
from macmesh_daemon.worker.pings import Pings
from macmesh_daemon.worker.piped_runner import FollowerRunner, HeadRunner
from macmesh_daemon.worker.runner import StageRunner
from macmesh_daemon.worker.transfers import HostTransfers, LaneTransfers, Transfers
from macmesh_rdma.group import Group, open_group
from macmesh_rdma.group_graph_lane import GroupGraphLane
from macmesh_rdma.group_host_lane import GroupHostLane
from macmesh_rdma.testing.host_graph_lane import HostGraphLane
from macmesh_rdma.testing.memory_host_lane import memory_host_lanes
from macmesh_rdma.testing.memory_lane import memory_lanes
from support.mlx_errors import forget_errors

if TYPE_CHECKING:
    from macmesh_rdma.graph_lane import GraphLane
    from macmesh_rdma.host_lane import HostLane

EPOCH = types_pb2.Epoch(generation=1, term=1, seq=1)
DEADLINE_SECONDS = 120.0
LAYERS = 4
Inbox = queue.SimpleQueue[Item]


class Plan:
    """A plan's stages; the head belongs to the thread that enters it.

    Args:
        folder: of the model.
        cuts: first layers of all stages but the head.
        kind: how arrays travel: "host" or "lane", "graph" in memory, "group" in graphs over real groups; there the
            stages must not run ahead at once, because MLX bounds what all threads of a process have queued together.
        slots: of each stage.
    """

    def __init__(self, folder: Path, cuts: Sequence[int], *, kind: str = "host", slots: int = 4) -> None:
        self.bounds = [0, *cuts, LAYERS]
        self.size = len(cuts) + 1
        self.folder, self.kind, self.slots = folder, kind, slots
        self.inboxes: list[Inbox] = [queue.SimpleQueue() for _ in range(self.size)]
        self.events: list[lane_pb2.WorkerEvent] = []
        self.together: list[int] = []
        self.runners: list[StageRunner | None] = [None] * self.size
        self.failures: list[BaseException] = []
        self.given: list[Step] = []
        self.hosts: Sequence[HostLane] = memory_host_lanes(self.size)
        self.groups: list[Group] = []
        self.lanes = memory_lanes(self.size)
        self.announced: list[queue.SimpleQueue[lane_pb2.StepPayload]] = [
            queue.SimpleQueue() for _ in range(self.size)
        ]
        self.ended = threading.Event()

    def outlets(self, index: int) -> Outlets:
        def tell(events: Sequence[lane_pb2.WorkerEvent]) -> None:
            self.together.append(len(events))
            self.events.extend(events)

        def step(message: lane_pb2.Step) -> None:
            self.given.append(step_from_wire(message))
            for inbox in self.inboxes[1:]:  # as each stage forwards it at once
                inbox.put(message)

        return Outlets(
            events=tell,
            step=step,
            payload=self.announced[(index + 1) % self.size].put,
            result=self.inboxes[0].put,
        )

    def runner(self, index: int, pings: Pings | None = None) -> StageRunner:
        """Loads a stage, for the thread that calls."""
        stage = load_stage(self.folder, self.bounds[index], self.bounds[index + 1], LAYERS)
        house = CacheHouse(stage.make_caches, self.slots)
        made = self._runner(index, stage, house, pings)
        self.runners[index] = made
        return made

    def _runner(self, index: int, stage: StageModel, house: CacheHouse, pings: Pings | None) -> StageRunner:
        if self.size == 1:
            return LocalRunner(stage, house)
        more: Any = {} if pings is None else {"waiting": pings.waiting}
        transfers = self.transfers(index)
        if isinstance(transfers, GraphTransfers):
            graph_kind = GraphHeadRunner if index == 0 else GraphFollowerRunner
            return graph_kind(stage, house, transfers, **more)
        kind = HeadRunner if index == 0 else FollowerRunner
        return kind(stage, house, transfers, **more)

    def transfers(self, index: int) -> Transfers:
        if self.kind == "host":
            return HostTransfers(self.hosts[index], index, self.size, DEADLINE_SECONDS)
        outlets = self.outlets(index)
        if self.kind in {"graph", "group"}:
            graph: GraphLane = HostGraphLane(self.hosts[index], DEADLINE_SECONDS)
            if self.kind == "group":
                graph = GroupGraphLane(self.groups[index])
            return GraphTransfers(
                self.hosts[index],
                graph,
                result=outlets.result,
                stage=index,
                stages=self.size,
                deadline_seconds=DEADLINE_SECONDS,
            )
        return LaneTransfers(
            self.lanes[index],
            announced=self.announced[index],
            announce=outlets.payload,
            result=outlets.result,
            deadline_seconds=DEADLINE_SECONDS,
        )

    def pings(self, index: int) -> Pings:
        def answer(ping: lane_pb2.PingWorker) -> None:
            runner = self.runners[index]
            assert runner is not None
            self.events.append(pong(ping, runner))

        return Pings(answer, lambda: None)

    @contextmanager
    def followers(self) -> Iterator[None]:
        """Runs all stages but the head, until the end of the block."""
        if self.kind == "group":
            self.groups = open_groups(self.size, DEADLINE_SECONDS)
            self.hosts = [GroupHostLane(group) for group in self.groups]
        threads = [threading.Thread(target=self._follow, args=(index,)) for index in range(1, self.size)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            for inbox in self.inboxes[1:]:
                inbox.put(RuntimeError("over"))
            for host in self.hosts:
                host.close()
            for thread in threads:
                thread.join(DEADLINE_SECONDS)
            if self.groups:
                forget_errors()

    @property
    def steps_ahead(self) -> int:
        """Lookahead of the schedule that such a plan needs."""
        return int(self.size == 1 or self.kind in {"graph", "group"})

    def _follow(self, index: int) -> None:
        try:
            pings = self.pings(index)
            FollowerLoop(self.runner(index, pings), self.outlets(index), pings).run(self.inboxes[index])
        except BaseException as error:  # noqa: BLE001  shown by the test
            if not self.ended.is_set():
                self.failures.append(error)
                self.inboxes[0].put(error)  # type: ignore[arg-type]

    def head_loop(self, scheduler: Schedule) -> tuple[HeadLoop, Inbox]:
        """The head's loop, for the thread that calls."""
        runner, pings = self.runner(0), self.pings(0)
        inbox = self.inboxes[0]
        if self.size > 1 and self.kind == "host":
            self.transfers(0).listen(inbox.put)
        loop = HeadLoop(
            runner,
            scheduler,
            self.outlets(0),
            pings,
            epoch=EPOCH,
            is_tail=self.size == 1,
            vocabulary_tokens=320,
        )
        return loop, inbox

    def give(self, step: Step) -> None:
        """Hands a step to all followers."""
        self.outlets(0).step(step_to_wire(step))


def turn_until(loop: HeadLoop, inbox: Inbox, ended: Callable[[], bool], turns: int = 2000) -> None:
    """Turns the loop until the condition holds."""
    for _ in range(turns):
        if ended():
            return
        loop.turn(inbox)
    raise AssertionError(f"not there after {turns} turns")


def open_groups(size: int, timeout_seconds: float) -> list[Group]:
    """The groups of that many ranks of a pipeline, over shared memory."""
    with listeners(size) as made:
        endpoints = endpoints_of(made)

        def join(rank: int) -> Group:
            return open_group(
                made[rank],
                rank,
                endpoints,
                key=KEY,
                epoch=(1, 1, 1),
                topology="pipeline",
                options=SMALL,
                timeout_seconds=timeout_seconds,
                measure=False,
            )

        outcomes = in_threads([functools.partial(join, rank) for rank in range(size)])
    for outcome in outcomes:
        assert isinstance(outcome, Group), outcome
    return outcomes
