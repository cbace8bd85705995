"""The one thread of a worker that touches mlx.

MLX binds streams to threads and its waits cannot be interrupted, so everything that computes is here, and the
rest of the worker goes on turning beside it.
"""

import dataclasses
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from macmesh.v1 import lane_pb2
from macmesh_daemon.engine.errors import EngineError
from macmesh_daemon.engine.files import vocabulary_tokens
from macmesh_daemon.engine.lean_imports import import_without_tokenizers
from macmesh_daemon.engine.scheduler import Limits, Scheduler
from macmesh_daemon.worker.checks import JACCL
from macmesh_daemon.worker.errors import RemoteNeighbourError, RemoteStageFailedError, WorkerError
from macmesh_daemon.worker.loops import FollowerLoop, HeadLoop, Item, Outlets, Runner
from macmesh_rdma.errors import RemoteTransportError, TransportError
from macmesh_rdma.lane import TensorLane

OpenLane = Callable[[], TensorLane | None]
"""Opens the tensor lane; called on the inference thread."""


@dataclasses.dataclass(frozen=True)
class Milestones:
    """What the thread tells of its life; every function may be called from any thread."""

    progress: Callable[[int, int], None]
    """Bytes loaded and to load."""
    loaded: Callable[[], None]
    """All weights are there."""
    ready: Callable[[], None]
    """The lane is open."""
    failed: Callable[[str], None]
    """The thread has ended; why."""
    peer_lost: Callable[[str], None]
    """The thread has ended only because another stage was lost; how."""


class InferenceThread:
    """Loads the stage, opens the lane, runs the steps.

    Args:
        start: what to run.
        outlets: where the loops' messages go.
        milestones: what is told of the thread's life.
    """

    def __init__(self, start: lane_pb2.StartStage, outlets: Outlets, milestones: Milestones) -> None:
        self._start = start
        self._outlets = outlets
        self._milestones = milestones
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._openers: queue.SimpleQueue[OpenLane] = queue.SimpleQueue()
        # A daemon thread: a wait in native code must not keep the process alive.
        self._thread = threading.Thread(target=self._guarded, name="inference", daemon=True)

    def start(self) -> None:
        """Starts the thread, which begins to load."""
        self._thread.start()

    def open_lane(self, opener: OpenLane) -> None:
        """Lets the thread go on, once it has loaded, to open the lane and to serve."""
        self._openers.put(opener)

    def put(self, item: Item) -> None:
        """Hands something to the loop; taken once the lane is open."""
        self._inbox.put(item)

    def _guarded(self) -> None:
        try:
            self._run()
        except (RemoteTransportError, RemoteNeighbourError, RemoteStageFailedError) as error:
            self._milestones.peer_lost(str(error))
        except (EngineError, TransportError, WorkerError) as error:
            self._milestones.failed(str(error))
        except MemoryError as error:
            self._milestones.failed(f"out of memory: {error}")
        except BaseException as error:  # noqa: BLE001  whatever ends the thread must end the worker
            traceback.print_exc(file=sys.stderr)
            self._milestones.failed(f"internal error: {error!r}")

    def _run(self) -> None:
        import_without_tokenizers()
        # Imported here and not above: the first command decides about mlx's environment.
        from macmesh_daemon.engine.stage import load_stage  # noqa: PLC0415
        from macmesh_daemon.worker.runner import StageRunner, set_memory_limits  # noqa: PLC0415

        start, deployment = self._start, self._start.deployment
        if len(deployment.stages) > 1:
            # These import mlx, and joining must be quick.
            if deployment.transport == JACCL:
                from macmesh_daemon.worker import jaccl_lane  # noqa: F401, PLC0415
            else:
                from macmesh_daemon.worker import tensor_lane  # noqa: F401, PLC0415
        stage = deployment.stages[start.stage_index]
        set_memory_limits(stage.ledger)
        model = load_stage(
            Path(start.model_path),
            stage.first_layer,
            stage.end_layer,
            deployment.layer_count,
            self._milestones.progress,
        )
        self._milestones.loaded()
        lane = self._openers.get()()
        runner = StageRunner(
            model,
            lane,
            slots=deployment.slots,
            send_header=self._outlets.header,
            step_deadline_seconds=start.step_deadline_seconds,
        )
        self._milestones.ready()
        self._loop(runner).run(self._inbox)

    def _loop(self, runner: Runner) -> HeadLoop | FollowerLoop:
        start, deployment = self._start, self._start.deployment
        is_tail = start.stage_index == len(deployment.stages) - 1
        if start.stage_index > 0:
            return FollowerLoop(runner, self._outlets, is_tail=is_tail)
        limits = Limits(
            context_tokens=deployment.context_tokens,
            slots=deployment.slots,
            stages=len(deployment.stages),
            prefill_chunk_tokens=deployment.prefill_chunk_tokens,
            step_deadline_seconds=start.step_deadline_seconds,
        )
        return HeadLoop(
            runner,
            Scheduler(limits),
            self._outlets,
            epoch=start.epoch,
            is_tail=is_tail,
            vocabulary_tokens=vocabulary_tokens(Path(start.model_path)),
        )
