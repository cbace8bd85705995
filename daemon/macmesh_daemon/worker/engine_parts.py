"""The parts that this project's own engine gives a worker. Imported before mlx is."""

import gc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from macmesh.v1 import lane_pb2, types_pb2
from macmesh_daemon.engine.budget import CacheBudget, budget_of_stages
from macmesh_daemon.engine.limits import Limits
from macmesh_daemon.engine.scheduler import Scheduler
from macmesh_daemon.worker.checks import is_tensor_parallel
from macmesh_daemon.worker.loops import Schedule
from macmesh_daemon.worker.parts import Parts, Progress

if TYPE_CHECKING:
    from macmesh_daemon.engine.held import HeldWeights
    from macmesh_daemon.engine.stage import StageModel
    from macmesh_daemon.worker.runner import House, Stage


def engine_parts() -> Parts:
    """This project's own engine."""
    loader = _Loader()
    return Parts(loader.load, _house, _schedule, loader.rest)


class _Loader:
    """Loads one stage after the other; weights that both need are read once."""

    def __init__(self) -> None:
        self._held: HeldWeights | None = None
        self._stage: StageModel | None = None

    def load(self, start: lane_pb2.StartStage, progress: Progress) -> "Stage":
        """See `Parts.load`."""
        from macmesh_daemon.engine.held import HeldWeights  # noqa: PLC0415  imports mlx
        from macmesh_daemon.engine.stage import load_stage  # noqa: PLC0415  same

        stage, deployment = start.deployment.stages[start.stage_index], start.deployment
        if is_tensor_parallel(deployment):
            from macmesh_daemon.engine.tensor_stage import load_tensor_stage  # noqa: PLC0415  same

            return load_tensor_stage(
                Path(start.model_path),
                start.stage_index,
                len(deployment.stages),
                deployment.layer_count,
                progress,
            )
        self._held = self._held or HeldWeights()
        self._stage = load_stage(
            Path(start.model_path),
            stage.first_layer,
            stage.end_layer,
            deployment.layer_count,
            progress,
            self._held,
        )
        return self._stage

    def rest(self) -> None:
        """See `Parts.rest`."""
        import mlx.core as mx  # noqa: PLC0415  not before the first command has set its environment

        if self._stage is not None:
            self._stage.let_go()
            self._stage = None
        # The model's layers and what routes their calls hold each other.
        gc.collect()
        mx.clear_cache()


def _house(start: lane_pb2.StartStage, stage: "Stage") -> "House":
    from macmesh_daemon.engine.cache_house import CacheHouse  # noqa: PLC0415  imports mlx

    make = partial(stage.make_caches, kv_bits=start.deployment.kv_bits)
    return CacheHouse(make, limits_of(start, queues=False).slots_at_once)


def _schedule(start: lane_pb2.StartStage, stage: "Stage", queues: bool) -> Schedule:
    from macmesh_daemon.engine.cache_traits import cache_traits  # noqa: PLC0415  imports mlx

    caches = stage.make_caches(1, kv_bits=start.deployment.kv_bits)
    traits = cache_traits(caches.entries, stage.architecture)
    return Scheduler(limits_of(start, queues=queues), budget_of(start.deployment), traits)


def limits_of(start: lane_pb2.StartStage, *, queues: bool) -> Limits:
    """What the plan allows.

    Args:
        start: the plan.
        queues: steps are queued ahead on the device.
    """
    deployment = start.deployment
    return Limits(
        context_tokens=deployment.context_tokens,
        slots=deployment.slots,
        # Ranks that share every layer are all busy with every step, as one stage is.
        stages=1 if is_tensor_parallel(deployment) else len(deployment.stages),
        prefill_chunk_tokens=deployment.prefill_chunk_tokens,
        step_deadline_seconds=start.step_deadline_seconds,
        lookahead=int(queues),
    )


def budget_of(deployment: types_pb2.Deployment) -> CacheBudget:
    """What the stages have for caches, as the plan says it."""
    return budget_of_stages(
        [(stage.cache_cost_json, stage.cache_budget_bytes) for stage in deployment.stages],
        slots=deployment.slots,
        context_tokens=deployment.context_tokens,
    )
