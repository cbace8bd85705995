"""One epoch on the one thread of a worker that touches mlx.

MLX binds streams to threads and its waits cannot be interrupted, so everything that computes is here, and the
rest of the worker goes on turning beside it.
"""

import contextlib
import dataclasses
import queue
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from macmesh.v1 import lane_pb2
from macmesh_daemon.engine.errors import EngineError
from macmesh_daemon.engine.files import vocabulary_tokens
from macmesh_daemon.engine.lean_imports import import_without_tokenizers
from macmesh_daemon.worker.checks import JACCL, is_tensor_parallel
from macmesh_daemon.worker.errors import RemoteNeighbourError, RemoteStageFailedError, WorkerError
from macmesh_daemon.worker.loops import (
    FollowerLoop,
    HeadLoop,
    Item,
    Outlets,
    Runner,
    Schedule,
    Wake,
    pong,
)
from macmesh_daemon.worker.parts import Parts
from macmesh_daemon.worker.pings import Pings
from macmesh_daemon.worker.resident import ResidentThread
from macmesh_rdma.errors import RemoteTransportError, TransportError
from macmesh_rdma.messages.progress_page import ProgressWriter

if TYPE_CHECKING:
    from macmesh_daemon.engine.limits import SchedulerStats
    from macmesh_daemon.engine.tensor_stage import TensorStage
    from macmesh_daemon.worker.collectives import Collectives
    from macmesh_daemon.worker.runner import House, Stage, StageRunner
    from macmesh_daemon.worker.transfers import Transfers
    from macmesh_daemon.worker.warm_up import WarmUp

OpenLane = Callable[["Stage"], "Transfers | Collectives | None"]
"""Opens the way to the other stages, for ours; on the inference thread. Collectives: where every layer is split."""
SWITCH_INTERVAL_SECONDS = 0.0005
"""Python's own 5 ms is how long the event loop would wait to send a step's header, while this thread describes."""


@dataclasses.dataclass(frozen=True)
class Milestones:
    """What the thread tells of its life; every function may be called from any thread."""

    progress: Callable[[int, int], None]
    """Bytes loaded and to load."""
    loaded: Callable[[], None]
    """All weights are there, and kernels compiled."""
    ready: Callable[[], None]
    """The lane is open."""
    phase: Callable[[str, float], None]
    """A part of the start is done: its name, and the seconds it took."""
    warmed_up: "Callable[[WarmUp], None]"
    """What was run to compile kernels."""
    failed: Callable[[str], None]
    """The thread has ended; why."""
    peer_lost: Callable[[str], None]
    """The thread has left the epoch only because another stage was lost; how."""
    left: Callable[[], None]
    """The thread has left the epoch, as it was asked to or because another stage was lost: nothing of it is left."""


class EpochEndedError(Exception):
    """Makes the thread leave the epoch."""


class InferenceThread:
    """Loads the stage, opens the lane, runs the steps, until the epoch ends.

    Args:
        thread: to run on.
        start: what to run.
        outlets: where the loops' messages go.
        milestones: what is told of the thread's life.
        parts: of the engine.
        progress: where the thread shows what it does.
    """

    def __init__(
        self,
        thread: ResidentThread,
        start: lane_pb2.StartStage,
        outlets: Outlets,
        milestones: Milestones,
        parts: Parts,
        progress: ProgressWriter | None = None,
    ) -> None:
        self._progress = progress or ProgressWriter()
        self._mark = time.perf_counter()
        self._start = start
        self._outlets = outlets
        self._milestones = milestones
        self._parts = parts
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._openers: queue.SimpleQueue[OpenLane] = queue.SimpleQueue()
        self._thread = thread
        self._leaving = False
        self._transfers: Transfers | None = None
        self._runner: StageRunner | None = None
        self._schedule: Schedule | None = None
        self._stats: SchedulerStats | None = None
        self._queues = False  # whether the runner queues steps ahead
        self._pings = Pings(self._pong, lambda: self._inbox.put(Wake()))
        self.announced: queue.SimpleQueue[lane_pb2.StepPayload] = queue.SimpleQueue()
        """What the stage before announces."""

    def start(self) -> None:
        """Lets the thread begin to load."""
        self._thread.run(self._guarded)

    def leave(self, reason: str) -> None:
        """Lets the thread leave the epoch wherever it is, and tell `Milestones.left`. From the event loop.

        What it computes goes on to its end; waits for other stages end at once where the transport can end them.
        """
        # First noted, then looked for transfers; the thread does it the other way round. So one of both sees it.
        self._leaving = True
        self._inbox.put(EpochEndedError())
        self._openers.put(_refuse)
        if self._transfers is not None:
            self._transfers.abort(reason)

    def open_lane(self, opener: OpenLane) -> None:
        """Lets the thread go on, once it has loaded, to open the lane and to serve."""
        self._openers.put(opener)

    def put(self, item: Item) -> None:
        """Hands something to the loop; taken once the lane is open."""
        self._inbox.put(item)

    def ask(self, ping: lane_pb2.PingWorker) -> None:
        """Lets the thread prove that it turns."""
        self._pings.ask(ping)

    def _guarded(self) -> None:
        if self._run_to_the_end():
            # Not in an except block, whose traceback would hold all that is to be given up.
            self._give_up()
            self._milestones.left()

    def _run_to_the_end(self) -> bool:
        """Whether the thread can go on with another epoch."""
        try:
            self._run()
        except EpochEndedError:
            return True
        except (RemoteTransportError, RemoteNeighbourError, RemoteStageFailedError) as error:
            if not self._leaving:
                self._milestones.peer_lost(str(error))
            return True
        except (EngineError, TransportError, WorkerError) as error:
            if self._leaving:
                return True  # what it waited for was ended
            self._milestones.failed(str(error))
        except MemoryError as error:
            self._milestones.failed(f"out of memory: {error}")
        except BaseException as error:  # noqa: BLE001  whatever ends the thread must end the worker
            traceback.print_exc(file=sys.stderr)
            self._milestones.failed(f"internal error: {error!r}")
        return False

    def _give_up(self) -> None:
        """Gives up the lane, the caches and all else but the weights."""
        transfers, self._transfers = self._transfers, None
        if transfers is not None:
            transfers.abort("the epoch has ended")
        if self._runner is not None:
            self._runner.close()
        if transfers is not None:
            transfers.close()
        del transfers
        self._runner = self._schedule = None
        self._parts.rest()
        self._progress.idle()

    def _run(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        import_without_tokenizers()
        # Imported here and not above: the first command decides about mlx's environment.
        from macmesh_daemon.worker.memory_limits import MemoryLimits  # noqa: PLC0415
        from macmesh_daemon.worker.warm_up import Warmth, has_gpu, most_batch_rows  # noqa: PLC0415  imports mlx

        self._progress.start()
        start, deployment = self._start, self._start.deployment
        if len(deployment.stages) > 1:
            # These import mlx, and joining must be quick.
            if is_tensor_parallel(deployment):
                from macmesh_daemon.worker import tensor_group  # noqa: F401, PLC0415
            elif deployment.transport == JACCL:
                from macmesh_daemon.worker import jaccl_lane  # noqa: F401, PLC0415
            else:
                from macmesh_daemon.worker import tensor_lane  # noqa: F401, PLC0415
        self._phase("import")
        thread = self._thread
        thread.limits = thread.limits or MemoryLimits()
        thread.limits.set(deployment.stages[start.stage_index].ledger)
        stage = self._parts.load(start, self._on_progress)
        house = self._parts.house(start, stage)
        self._phase("load")
        # Before the stages connect, which must be quick, while a load is only watched for progress.
        self._progress.warm_up()
        stage.layer_done = self._progress.layer
        thread.warmth = thread.warmth or Warmth()
        facts = thread.warmth.warm_up(
            stage,
            context_tokens=deployment.context_tokens,
            chunk_tokens=deployment.prefill_chunk_tokens,
            kv_bits=deployment.kv_bits,
            compiles=has_gpu(),
            batch_rows=most_batch_rows(deployment),
            batch_done=self._progress.warm_up,
        )
        self._phase("warm_up")
        self._milestones.warmed_up(facts)
        self._progress.idle()
        self._milestones.loaded()
        way = self._openers.get()(stage)
        transfers: Transfers | None = None
        if is_tensor_parallel(deployment):
            self._require_epoch()
            self._runner = runner = self._make_tensor_runner(stage, house, cast("Collectives", way))
        else:
            transfers = self._transfers = cast("Transfers | None", way)
            self._require_epoch()
            self._runner = runner = self._make_runner(stage, house, transfers)
        self._phase("connect")
        self._milestones.ready()
        self._loop(runner, stage, transfers).run(self._inbox)

    def _on_progress(self, loaded: int, total: int) -> None:
        self._require_epoch()
        self._milestones.progress(loaded, total)

    def _require_epoch(self) -> None:
        if self._leaving:
            raise EpochEndedError

    def _phase(self, name: str) -> None:
        now = time.perf_counter()
        self._milestones.phase(name, now - self._mark)
        self._mark = now

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Is entered while another stage is waited for."""
        self._progress.waiting()
        try:
            with self._pings.waiting():
                yield
        finally:
            self._progress.turn()

    def _make_tensor_runner(
        self, stage: "Stage", house: "House", collectives: "Collectives"
    ) -> "StageRunner":
        from macmesh_daemon.worker.tensor_runner import TensorRunner  # noqa: PLC0415  imports mlx

        cast("TensorStage", stage).join(collectives.group)
        self._queues = True
        return TensorRunner(stage, house, collectives, waiting=self._waiting)

    def _make_runner(self, stage: "Stage", house: "House", transfers: "Transfers | None") -> "StageRunner":
        from macmesh_daemon.worker.graph_runner import GraphFollowerRunner, GraphHeadRunner  # noqa: PLC0415  imports mlx
        from macmesh_daemon.worker.graph_transfers import GraphTransfers  # noqa: PLC0415  same
        from macmesh_daemon.worker.local_runner import LocalRunner  # noqa: PLC0415  same
        from macmesh_daemon.worker.piped_runner import FollowerRunner, HeadRunner  # noqa: PLC0415  same

        is_head = self._start.stage_index == 0
        if transfers is None:
            self._queues = True
            return LocalRunner(stage, house)
        if isinstance(transfers, GraphTransfers):
            self._queues = True
            in_graph = GraphHeadRunner if is_head else GraphFollowerRunner
            return in_graph(stage, house, transfers, waiting=self._waiting)
        kind = HeadRunner if is_head else FollowerRunner
        return kind(stage, house, transfers, waiting=self._waiting)

    def _loop(self, runner: Runner, stage: "Stage", transfers: "Transfers | None") -> HeadLoop | FollowerLoop:
        start = self._start
        if start.stage_index > 0:
            return FollowerLoop(runner, self._outlets, self._pings, self._progress)
        if transfers is not None:
            transfers.listen(self._inbox.put)
        self._schedule = schedule = self._parts.schedule(start, stage, self._queues)
        return HeadLoop(
            runner,
            schedule,
            self._outlets,
            self._pings,
            epoch=start.epoch,
            is_tail=transfers is None,
            has_others=len(start.deployment.stages) > 1,
            progress=self._progress,
            vocabulary_tokens=vocabulary_tokens(Path(start.model_path)),
        )

    def _pong(self, ping: lane_pb2.PingWorker) -> None:
        if self._runner is not None:  # pings that came before are answered by the first turn
            if self._schedule is not None and self._thread.is_current:
                # Another thread, which answers while this one waits, tells what was counted last.
                self._stats = self._schedule.stats
            self._outlets.events([pong(ping, self._runner, self._stats)])


def _refuse(_stage: "Stage") -> "Transfers | None":
    """In place of what opens a lane."""
    raise EpochEndedError
