"""The phase of a plan, from the reports of its workers."""

import pytest

from macmesh_daemon.cluster.messages import (
    Deployment,
    Epoch,
    ModelRef,
    Plan,
    Stage,
    WorkerReport,
    WorkerState,
)
from macmesh_daemon.cluster.view import ClusterView
from macmesh_daemon.node.loading import phase_of

EPOCH = Epoch(1, 2, 3)
PLAN = Plan(
    epoch=EPOCH,
    deployments=(
        Deployment(
            model=ModelRef("m", "/m", "d"),
            stages=(Stage(index=0, node_id="a"), Stage(index=1, node_id="b")),
        ),
    ),
)


def _view(**states: WorkerState) -> ClusterView:
    return ClusterView(
        node_id="a",
        role="follower",
        generation=1,
        term=2,
        coordinator_node_id="a",
        has_quorum=True,
        document=None,
        stored_document=None,
        liveness={},
        heartbeat_ms={},
        workers={k: WorkerReport(epoch=EPOCH, state=v) for k, v in states.items()},
        promised=None,
        active=None,
        active_plan=None,
        serving_state="loading",
        refusal_json="",
        refusal_reason="",
    )


@pytest.mark.parametrize(
    ("states", "phase"),
    [
        ({}, "committed"),
        ({"a": WorkerState.LOADING}, "loading"),
        ({"a": WorkerState.LOADED, "b": WorkerState.LOADING}, "loading"),
        ({"a": WorkerState.LOADED, "b": WorkerState.LOADED}, "connecting"),
        ({"a": WorkerState.READY, "b": WorkerState.LOADED}, "connecting"),
        ({"a": WorkerState.READY, "b": WorkerState.READY}, "ready"),
    ],
)
def test_phase_follows_the_slowest_worker(states: dict[str, WorkerState], phase: str) -> None:
    assert phase_of(_view(**states), PLAN) == phase


def test_workers_of_another_epoch_do_not_count() -> None:
    other = Plan(epoch=Epoch(1, 2, 4), deployments=PLAN.deployments)

    assert phase_of(_view(a=WorkerState.READY, b=WorkerState.READY), other) == "committed"


def test_an_empty_plan_is_ready() -> None:
    assert phase_of(_view(), Plan(epoch=EPOCH)) == "ready"
