"""What a worker takes of a tensor-parallel plan, and what its schedule is told. No process."""

from pathlib import Path

import pytest

from macmesh.v1 import lane_pb2
from macmesh_daemon.supervisor.errors import LocalVerifyError
from macmesh_daemon.supervisor.local_plan import local_plan
from macmesh_daemon.worker.checks import check_start
from macmesh_daemon.worker.engine_parts import limits_of
from macmesh_daemon.worker.errors import LocalStartError

FOLDER = Path("model")


def starts(ways: int = 2) -> list[lane_pb2.StartStage]:
    return local_plan([FOLDER] * ways, [], layer_count=4, context_tokens=100, tensor_parallel=True)


def test_every_rank_has_all_layers_and_the_schedule_sees_one_stage() -> None:
    for start in starts(4):
        check_start(start)
        limits = limits_of(start, queues=True)
        assert (limits.stages, limits.lookahead) == (1, 1)
    pipeline = local_plan([FOLDER] * 2, [1], layer_count=4, context_tokens=100)[1]
    check_start(pipeline)
    assert limits_of(pipeline, queues=False).stages == 2


def test_other_plans_are_refused() -> None:
    cut = starts()[0]
    cut.deployment.stages[1].first_layer = 2
    with pytest.raises(LocalStartError, match="rank 1 has layers 2 to 4"):
        check_start(cut)
    alone = starts()[0]
    del alone.deployment.stages[1]
    with pytest.raises(LocalStartError, match="two ranks"):
        check_start(alone)
    strange = starts()[0]
    strange.deployment.parallelism = "experts"
    with pytest.raises(LocalStartError, match="'experts'"):
        check_start(strange)
    with pytest.raises(LocalVerifyError, match="cannot share"):
        local_plan([FOLDER] * 2, [1], layer_count=4, context_tokens=100, tensor_parallel=True)
