"""When a worker's process may outlive its epoch, and when it is let go."""

import dataclasses
from typing import Any

import pytest

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.keeping import why_not_kept
from macmesh_daemon.cluster.messages import (
    CommitRequest,
    Deployment,
    Epoch,
    HeartbeatRequest,
    ModelRef,
    Plan,
    PrepareRequest,
    WorkerReport,
    WorkerState,
)
from simulator.parts import split, wanted_model
from simulator.solo import Solo, beat, document, kinds, only, stored

M = wanted_model()
FIRST, SECOND = Epoch(1, 1, 1), Epoch(1, 1, 2)


def deployment(names: str = "abc", **changes: Any) -> Deployment:
    return dataclasses.replace(split(M, list(names)), **changes)


def take(node: Solo, epoch: Epoch, what: Deployment) -> list[fx.Effect]:
    """What COMMIT of a plan makes of a node."""
    node.ask("a", PrepareRequest(1, Plan(epoch, (what,), M), 1))
    node.step(ev.PrepareChecked(epoch, ok=True, reason=""))
    return node.ask("a", CommitRequest(1, epoch, 1))


def plan_without(node: Solo) -> list[fx.Effect]:
    """What comes of a committed plan of the others alone."""
    plan = Plan(Epoch(1, 1, 3), (deployment("ac"),), M)
    stored_by_it = dataclasses.replace(document(seq=3), plan=plan, wanted=M)
    return node.ask("a", beat(doc=stored_by_it)) + node.ask("a", HeartbeatRequest(1, 1, 2, None, 1, 3, 1))


def running(first: Deployment | None = None) -> Solo:
    """Node b serves its stage of the first epoch."""
    node = Solo(stored())
    assert "StartWorker" in kinds(take(node, FIRST, first or deployment()))
    node.step(ev.WorkerReported(WorkerReport(FIRST, 1, WorkerState.READY)))
    return node


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"context_tokens": 4096, "slots": 3, "kv_bits": 8, "transport": "tcp"}, ""),
        ({"model": ModelRef("m", "/models/m", "digest of other files")}, "another model is served"),
        ({"model": None}, "another model is served"),
        ({"transport": "jaccl"}, "jaccl cannot be rebuilt in a living process"),
        ({"sync_mode": "fast"}, "synchronisation fast is asked for in place of safe"),
    ],
)
def test_what_a_process_can_take_up(changes: dict[str, Any], reason: str) -> None:
    assert why_not_kept(deployment(), deployment("ab", **changes)) == reason
    stop = only(take(running(), SECOND, deployment("ab", **changes)), fx.StopWorker)
    assert stop == [fx.StopWorker(FIRST, 2.0, keep=not reason)]


def test_neither_jaccl_nor_a_model_without_a_digest_is_ever_kept() -> None:
    jaccl = deployment(transport="jaccl")
    unpinned = deployment(model=ModelRef("m", "/models/m", ""))
    assert "jaccl" in why_not_kept(jaccl, deployment())
    assert "jaccl" in why_not_kept(jaccl, jaccl)
    assert why_not_kept(unpinned, unpinned) == "the model's content is not pinned by a digest"


def test_the_next_epoch_begins_once_the_last_has_ended_though_its_process_lives() -> None:
    node = running()
    assert kinds(take(node, SECOND, deployment("ab"))) == ["StopWorker"]
    assert node.state.active == FIRST
    effects = node.step(ev.WorkerStopped(FIRST))
    assert kinds(effects) == ["Persist", "StartWorker", "Reply"]


@pytest.mark.parametrize("how", ["kept for a plan that was overtaken", "rested by itself"])
def test_a_plan_without_this_node_lets_a_resting_process_go(how: str) -> None:
    node = running()
    if how == "rested by itself":
        report = WorkerReport(
            FIRST, 1, WorkerState.FAILED, error="stage 0 was lost", peer_lost=True, resting=True
        )
        node.step(ev.WorkerReported(report))
        assert kinds(node.step(ev.WorkerStopped(FIRST))) == []
    else:
        (stop,) = only(take(node, SECOND, deployment("ab")), fx.StopWorker)
        assert stop.keep
    effects = plan_without(node)
    effects += node.step(ev.WorkerStopped(FIRST))
    assert len(only(effects, fx.ReleaseWorker)) == 1
    assert not only(effects, fx.StartWorker)


def test_a_plan_without_this_node_keeps_nothing() -> None:
    node = running()
    effects = plan_without(node)
    assert only(effects, fx.StopWorker) == [fx.StopWorker(FIRST, 2.0, keep=False)]
    assert not only(node.step(ev.WorkerStopped(FIRST)), fx.ReleaseWorker), "it has ended already"
