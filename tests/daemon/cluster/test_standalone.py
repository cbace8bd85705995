"""A node left alone plans for itself only, and a cluster finds it as it left it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import (
    CommitRequest,
    Deployment,
    Epoch,
    HeartbeatResponse,
    Plan,
    PrepareRequest,
    PrepareResponse,
    SetPeersRequest,
    WorkerReport,
    WorkerState,
)
from macmesh_daemon.cluster.settings import ClusterSettings
from macmesh_daemon.cluster.standalone import local_epoch
from macmesh_daemon.cluster.state import PersistentState
from simulator.parts import split, wanted_model
from simulator.solo import Solo, beat, document, kinds, only
from simulator.world import World

M = wanted_model()
AFTER = ClusterSettings().standalone_after_seconds


def alone(*, wanted: bool = True, names: str = "abc") -> Solo:
    """A member of a cluster that wants a model, started anew; it hears nobody."""
    plan = Plan(Epoch(1, 1, 1), (split(M, list(names)),), M)
    stored = dataclasses.replace(document(names), plan=plan, wanted=M if wanted else None)
    return Solo(
        PersistentState(
            generation=1,
            term=1,
            document=stored,
            commit_generation=1,
            commit_term=1,
            commit_seq=1,
            promised=Epoch(1, 1, 1),
            promised_plan=plan,
            active=Epoch(1, 1, 1),
            active_plan=plan,
        )
    )


def wait(node: Solo, seconds: float) -> list[fx.Effect]:
    """Let time pass as it does: tick by tick."""
    end = node.now + seconds
    effects: list[fx.Effect] = []
    while True:
        deadline = node.machine.next_deadline()
        if deadline is None or deadline > end:
            node.now = end
            return effects
        effects += node.tick()


def own(node: Solo) -> Deployment:
    return split(M, [node.node_id])


def start(node: Solo) -> Epoch:
    """Bring a lone node's own plan to READY."""
    (asked,) = only(wait(node, AFTER + 3), fx.ComputePlan)
    (check,) = only(node.step(ev.PlanComputed(asked.request_id, own(node))), fx.CheckPrepare)
    assert check.plan.epoch is not None
    (begun,) = only(node.step(ev.PrepareChecked(check.plan.epoch, ok=True, reason="")), fx.StartWorker)
    report = WorkerReport(begun.epoch, 0, WorkerState.LOADED, control_address="b:1", tensor_address="b:2")
    (given_peers,) = only(node.step(ev.WorkerReported(report)), fx.GivePeers)
    assert [p.node_id for p in given_peers.request.peers] == ["b"]
    node.step(ev.WorkerReported(dataclasses.replace(report, state=WorkerState.READY)))
    return begun.epoch


@given(
    st.text(min_size=1),
    st.text(min_size=1),
    st.integers(1, 2**63),
    st.integers(1, 2**63),
    st.builds(Epoch, st.integers(1, 2**63), st.integers(0, 2**63), st.integers(0, 2**63)),
)
def test_local_epochs_are_below_all_others_and_shared_by_no_two_nodes(
    one: str, two: str, i: int, j: int, cluster: Epoch
) -> None:
    assert local_epoch(one, i) < cluster
    assert local_epoch(one, i).is_local
    assert not cluster.is_local
    assert (local_epoch(one, i) == local_epoch(two, j)) == ((one, i) == (two, j))


def test_a_lone_node_asks_for_a_plan_of_itself_only_and_not_before_its_time() -> None:
    node = alone()
    assert not only(wait(node, AFTER - 0.1), fx.ComputePlan)
    (asked,) = only(wait(node, 0.2), fx.ComputePlan)

    assert [m.node_id for m in asked.members] == ["b"]
    assert asked.wanted.model == M.model
    assert node.machine.view.standalone
    assert node.machine.view.serving_state == "planning"


def test_its_plan_serves_under_a_local_epoch_and_leaves_the_clusters_state_alone() -> None:
    node = alone()
    before = node.state
    epoch = start(node)
    view = node.machine.view

    assert epoch == local_epoch("b", 1)
    assert (view.standalone, view.serving_state, view.active) == (True, "ready", epoch)
    assert view.plan == view.active_plan
    assert view.plan is not None
    assert view.plan.node_ids == ("b",)
    assert view.document == before.document
    assert dataclasses.replace(node.state, local_seq=0) == before
    assert node.state.local_seq == 1


def test_a_local_epoch_is_never_used_again_not_even_after_a_restart() -> None:
    node = alone()
    first = start(node)

    assert start(node.reboot()) > first


@pytest.mark.parametrize("names", [["a"], ["b", "a"], ["a", "b"], []])
def test_a_plan_that_names_anybody_else_is_refused(names: list[str]) -> None:
    node = alone()
    (asked,) = only(wait(node, AFTER + 3), fx.ComputePlan)
    effects = node.step(ev.PlanComputed(asked.request_id, split(M, names) if names else None))

    assert kinds(effects) == []
    assert node.machine.view.serving_state == "refused"


def test_a_coordinator_ends_it_at_once_and_the_worker_goes_before_the_next_starts() -> None:
    node = alone()
    epoch = start(node)
    effects = node.ask("a", beat(2))
    (stop,) = only(effects, fx.StopWorker)
    (reply,) = only(effects, fx.Reply)

    assert stop.epoch == epoch
    assert isinstance(reply.message, HeartbeatResponse)
    assert reply.message.active == Epoch(1, 1, 1)
    assert reply.message.worker is None, "of its own plan it tells nobody"
    assert not node.machine.view.standalone
    plan = Plan(Epoch(1, 2, 1), (split(M, ["b"]),), M)
    node.ask("a", PrepareRequest(2, plan, 1))
    node.step(ev.PrepareChecked(Epoch(1, 2, 1), ok=True, reason=""))
    assert not only(node.ask("a", CommitRequest(2, Epoch(1, 2, 1), 1)), fx.StartWorker)
    (begun,) = only(node.step(ev.WorkerStopped(epoch)), fx.StartWorker)
    assert begun.epoch == Epoch(1, 2, 1)


@pytest.mark.parametrize("phase", ["computing", "checking"])
def test_a_coordinator_ends_it_in_every_phase(phase: str) -> None:
    node = alone()
    (asked,) = only(wait(node, AFTER + 3), fx.ComputePlan)
    computed = ev.PlanComputed(asked.request_id, own(node))
    if phase == "checking":
        node.step(computed)
    node.answer("a", beat(2))
    late = node.step(computed) + node.step(ev.PrepareChecked(local_epoch("b", 1), ok=True, reason=""))

    assert kinds(late) == []
    assert not node.machine.view.standalone


def test_a_plan_that_serves_still_is_left_alone() -> None:
    node = alone()
    plan = Plan(Epoch(1, 2, 1), (split(M, ["a", "b"]),), M)
    node.answer("a", beat(2))
    node.ask("a", PrepareRequest(2, plan, 1))
    node.step(ev.PrepareChecked(Epoch(1, 2, 1), ok=True, reason=""))
    node.ask("a", CommitRequest(2, Epoch(1, 2, 1), 1))
    report = WorkerReport(Epoch(1, 2, 1), 1, WorkerState.READY)
    node.step(ev.WorkerReported(report))
    assert not only(wait(node, 4 * AFTER), fx.ComputePlan)
    assert not node.machine.view.standalone
    failed = dataclasses.replace(report, state=WorkerState.FAILED, peer_lost=True)
    (asked,) = only(node.step(ev.WorkerReported(failed)) + wait(node, 1), fx.ComputePlan)
    assert [m.node_id for m in asked.members] == ["b"]
    node.step(ev.PlanComputed(asked.request_id, own(node)))
    effects = node.step(ev.PrepareChecked(local_epoch("b", 1), ok=True, reason=""))
    assert kinds(effects) == ["StopWorker"]
    assert kinds(node.step(ev.WorkerStopped(Epoch(1, 2, 1)))) == ["StartWorker"]


def test_nothing_is_planned_where_nothing_is_wanted_or_the_setting_forbids() -> None:
    assert not only(wait(alone(wanted=False), 3 * AFTER), fx.ComputePlan)
    node = alone()
    node.settings = dataclasses.replace(node.settings, standalone=False)
    node.machine._context.settings = node.settings
    assert not only(wait(node, 3 * AFTER), fx.ComputePlan)


def test_a_worker_that_ends_is_started_anew_after_a_while_under_a_new_epoch() -> None:
    node = alone()
    epoch = start(node)
    (stop,) = only(node.step(ev.WorkerReported(WorkerReport(epoch, 0, WorkerState.FAILED))), fx.StopWorker)
    assert stop.epoch == epoch
    node.step(ev.WorkerStopped(epoch))
    (asked,) = only(wait(node, 5), fx.ComputePlan)
    (check,) = only(node.step(ev.PlanComputed(asked.request_id, own(node))), fx.CheckPrepare)
    assert check.plan.epoch == local_epoch("b", 2)


@pytest.mark.parametrize("sender", ["a", "c"])
def test_a_peer_cannot_have_a_local_epoch_promised_or_connected(sender: str) -> None:
    node = alone()
    epoch = start(node)
    plan = Plan(local_epoch(sender, 9), (split(M, ["b"]),), M)
    answer = node.answer(sender, PrepareRequest(2, plan, 1))
    assert isinstance(answer, PrepareResponse)
    assert not answer.promised
    assert not only(node.ask(sender, SetPeersRequest(2, epoch, (), bytes(32), 1)), fx.GivePeers)


def test_a_local_epoch_is_promised_not_even_by_a_node_that_has_promised_nothing() -> None:
    node = Solo(PersistentState(generation=1, term=1, document=document()))
    plan = Plan(local_epoch("a", 9), (split(M, ["b"]),), M)
    effects = node.ask("a", PrepareRequest(1, plan, 1))

    assert kinds(effects) == ["Reply"]
    assert node.state.promised is None


def test_both_sides_of_a_cut_serve_and_share_no_node_and_meet_again() -> None:
    world = World(5, 5)
    world.start(M)
    world.cut("abc", "d", "e")
    world.run(5)
    for name in "de":
        world.kill_worker(name)  # it has lost its neighbours
    world.run(40)
    majority = world.coordinator()
    assert majority is not None
    plan = majority.up.view.document
    assert plan is not None
    assert plan.plan is not None
    assert set(plan.plan.node_ids) == set("abc")
    for name in "de":
        view = world.nodes[name].up.view
        assert (view.standalone, view.serving_state) == (True, "ready")
        assert view.plan is not None
        assert view.plan.node_ids == (name,)
    world.heal()
    world.run_until(world.agreed, 10)
    world.run(1)
    assert not any(n.up.view.standalone for n in world.nodes.values())
    assert all(n.worker is None or not n.worker.epoch.is_local for n in world.nodes.values())
