"""What a fake daemon answers; change it at any time, the next call sees it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from macmesh.testing import scenes
from macmesh.v1 import cluster_pb2, types_pb2
from macmesh.wire_errors import WireFailure


@dataclass(frozen=True, slots=True)
class GenerateScript:
    """One generation.

    Attributes:
        pieces: Text of each token; token ids count up from `first_token_id`.
        waiting: Positions told before the first token, each with an estimate of 1.5 seconds for a place.
        paused: What is told to be missing before the first token, with the reason NOT_READY.
        hold_after: After so many tokens, wait until the call is cancelled or `FakeDaemon.release` is called;
            None never waits. 0 waits before the first token.
        fail_after: After so many tokens, end with `failure`.
        failure: What to end with.
        lost_after: After so many tokens of a call, end it as a connection that breaks; a generation that is taken
            up goes on from there.
        drop_end: End without a finish reason, as no daemon should.
    """

    pieces: tuple[str, ...] = ("Once", " upon", " a", " time", ".")
    first_token_id: int = 100
    waiting: tuple[int, ...] = ()
    paused: tuple[str, ...] = ()
    hold_after: int | None = None
    fail_after: int | None = None
    failure: WireFailure | None = None
    lost_after: int | None = None
    drop_end: bool = False


def _plan() -> cluster_pb2.PlanModelResponse:
    return cluster_pb2.PlanModelResponse(
        feasible=True, result_json=json.dumps({"format": "daemonctl-plan/1", "feasible": True, "stages": []})
    )


@dataclass(slots=True)
class Script:
    """Answers of every RPC.

    Attributes:
        status: For GetStatus, and first on WatchCluster.
        plan: For PlanModel.
        load: Steps of LoadModel.
        hold_load_after: As `GenerateScript.hold_after`, in steps.
        unload_epoch: For UnloadModel.
        drain_seq: For DrainNode.
        drill_done: For DrillFault.
        generate: For Generate.
        stage_stats: For GetStageStats; is given the tokens generated so far.
        failures: RPC name, such as "GetStatus", to the failure that it ends with at once.
        held: RPC names that answer only after `FakeDaemon.release`.
    """

    status: cluster_pb2.GetStatusResponse = field(default_factory=scenes.ready)
    plan: cluster_pb2.PlanModelResponse = field(default_factory=_plan)
    load: list[cluster_pb2.LoadModelResponse] = field(default_factory=scenes.load_steps)
    hold_load_after: int | None = None
    unload_epoch: types_pb2.Epoch = field(
        default_factory=lambda: types_pb2.Epoch(generation=1, term=3, seq=3)
    )
    drain_seq: int = 12
    drill_done: str = "killed the worker, process 4711"
    generate: GenerateScript = field(default_factory=GenerateScript)
    stage_stats: Callable[[int], cluster_pb2.GetStageStatsResponse] = scenes.stage_stats
    failures: dict[str, WireFailure] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
