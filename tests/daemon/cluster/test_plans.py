"""The life of a plan in a simulated cluster: made, served, replaced, taken over, refused, ended."""

from collections.abc import Callable

import pytest

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import (
    CommitRequest,
    Deployment,
    Epoch,
    PrepareRequest,
    SetPeersRequest,
    WorkerReport,
    WorkerState,
)
from simulator.parts import split, wanted_model
from simulator.world import World

M = wanted_model()
Planner = Callable[[fx.ComputePlan], Deployment | None]


def on(names: str) -> Planner:
    """Plan for those of these nodes that may be used."""

    def compute(ask: fx.ComputePlan) -> Deployment | None:
        usable = [m.node_id for m in ask.members if m.node_id in names]
        return split(ask.wanted, usable) if usable else None

    return compute


def at_least(count: int) -> Planner:
    def compute(ask: fx.ComputePlan) -> Deployment | None:
        names = [m.node_id for m in ask.members]
        return split(ask.wanted, names) if len(names) >= count else None

    return compute


def plan_epoch(world: World) -> Epoch:
    leader = world.coordinator()
    assert leader is not None
    document = leader.up.view.document
    assert document is not None
    assert document.plan is not None
    assert document.plan.epoch is not None
    return document.plan.epoch


def plan_nodes(world: World) -> set[str]:
    leader = world.coordinator()
    assert leader is not None
    document = leader.up.view.document
    assert document is not None
    assert document.plan is not None
    return set(document.plan.node_ids)


def touched(world: World) -> list[fx.Effect]:
    return [e for _, _, e in world.log if isinstance(e, fx.StartWorker | fx.StopWorker)]


def outcomes(world: World, change_id: int) -> list[object]:
    return [o for n in world.nodes.values() for o in n.outcomes if o.change_id == change_id]


def test_a_wanted_model_is_planned_promised_committed_loaded_connected_and_ready() -> None:
    world = World(1, 3)
    world.start()
    world.keep_log = True
    change_id = world.load(M)
    world.run_until(world.ready, 10)

    assert [type(o).__name__ for o in outcomes(world, change_id)] == ["ChangeAccepted", "ChangeDone"]
    assert plan_nodes(world) == {"a", "b", "c"}
    for name in "abc":
        mine = [e for _, n, e in world.log if n == name]
        order = [
            type(e).__name__
            for e in mine
            if isinstance(e, fx.CheckPrepare | fx.StartWorker | fx.GivePeers | fx.StopWorker)
        ]
        assert order == ["CheckPrepare", "StartWorker", "GivePeers"]
    asked = [(e.peer, type(e.message)) for _, _, e in world.log if isinstance(e, fx.Send)]
    for kind in (PrepareRequest, CommitRequest, SetPeersRequest):
        assert sorted(peer for peer, k in asked if k is kind) == ["b", "c"], "asked once, and itself inside"
    keys = {e.request.epoch_key for _, _, e in world.log if isinstance(e, fx.GivePeers)}
    assert [len(key) for key in keys] == [32]
    peers = next(e.request.peers for _, _, e in world.log if isinstance(e, fx.GivePeers))
    assert [(p.stage_index, p.node_id) for p in peers] == [(i, p.node_id) for i, p in enumerate(peers)]


def test_every_node_shows_the_whole_cluster() -> None:
    world = World(1, 3)
    world.start(M)
    world.run(1.5)
    for node in world.nodes.values():
        view = node.up.view
        assert dict(view.liveness) == dict.fromkeys("abc", "alive")
        assert {n: w.state for n, w in view.workers.items()} == dict.fromkeys("abc", WorkerState.READY)
        assert set(view.heartbeat_ms) == {"a", "b", "c"}
        assert view.serving_state == "ready"
        assert view.has_quorum
        assert view.document == view.stored_document


def test_a_node_that_refuses_its_stage_is_left_out_under_the_next_epoch() -> None:
    world = World(1, 3)
    world.start()
    world.hold_prepare_checks = {"b"}
    world.keep_log = True
    world.load(M)
    world.run_until(lambda: any(isinstance(e, fx.CheckPrepare) and n == "b" for _, n, e in world.log), 5)
    asked = next(e for _, n, e in world.log if isinstance(e, fx.CheckPrepare) and n == "b")
    assert asked.plan.epoch is not None
    world.step(world.nodes["b"], ev.PrepareChecked(asked.plan.epoch, ok=False, reason="no room"))
    world.run_until(world.ready, 3)

    assert plan_nodes(world) == {"a", "c"}
    assert plan_epoch(world) > asked.plan.epoch
    assert [dict(a.facts) for a in world.announcements("prepare refused")] == [
        {"node_id": "b", "reason": "no room"}
    ]


def test_a_node_that_does_not_answer_prepare_is_left_out_after_the_timeout() -> None:
    world = World(1, 3)
    world.start()
    world.hold_prepare_checks = {"c"}
    world.load(M)
    took = world.run_until(world.ready, 15)

    assert plan_nodes(world) == {"a", "b"}
    assert 5.0 < took < 8.0


def test_the_old_plan_serves_until_the_new_one_commits() -> None:
    world = World(1, 3)
    world.start(M)
    before = plan_epoch(world)
    world.keep_log = True
    world.hold_prepare_checks = {"c"}
    world.load(wanted_model("k"))
    world.run(4.0)
    assert touched(world) == [], "a promise stops nothing"
    assert {n.disk.active for n in world.nodes.values()} == {before}
    assert world.ready()
    world.run_until(lambda: plan_epoch(world) > before and world.ready(), 15)


@pytest.mark.parametrize("seed", range(5))
def test_a_new_coordinator_adopts_the_running_plan_under_its_epoch(seed: int) -> None:
    world = World(seed, 3, compute=on("bc"))
    world.start(M)
    before = plan_epoch(world)
    leader = world.coordinator()
    assert leader is not None
    world.keep_log = True
    world.cut("".join(n for n in "abc" if n != leader.node_id), leader.node_id)
    world.run_until(lambda: world.coordinator() not in {None, leader}, 5)
    world.heal()
    world.run_until(world.ready, 10)
    world.run(5)

    assert plan_epoch(world) == before
    assert touched(world) == []
    assert world.ready()


@pytest.mark.parametrize("phase", ["stored", "committed", "loading", "loaded", "connecting"])
def test_a_new_coordinator_brings_a_half_started_plan_to_ready(phase: str) -> None:
    world = World(3, 4, compute=on("bcd"))
    world.start()
    leader = world.coordinator()
    assert leader is not None
    assert leader.node_id == "a"
    world.load(M)

    def states() -> set[WorkerState]:
        workers = [world.nodes[n].worker for n in "bcd"]
        return {w.state for w in workers if w is not None}

    world.run_until(
        lambda: (
            leader.up._context.state.document is not None and bool(leader.up._context.state.document.plan)
        ),
        5,
    )
    conditions: dict[str, Callable[[], bool]] = {
        "stored": lambda: True,
        "committed": lambda: bool(world.announcements("plan committed")),
        "loading": lambda: WorkerState.LOADING in states(),
        "loaded": lambda: states() == {WorkerState.LOADED},
        "connecting": lambda: bool(world.announcements("peers told")),
    }
    world.run_until(conditions[phase], 5)
    world.crash("a")
    world.run_until(lambda: world.coordinator() is not None, 5)
    world.boot("a")
    world.run_until(world.ready, 45)

    if phase != "stored":
        assert plan_epoch(world).term == 1, "the plan keeps its epoch"


def test_a_dead_plan_member_is_planned_without_and_released_when_it_returns() -> None:
    world = World(1, 3)
    world.start(M)
    before = plan_epoch(world)
    leader = world.coordinator()
    assert leader is not None
    gone = next(n for n in "abc" if n != leader.node_id)
    rest = "".join(n for n in "abc" if n != gone)
    world.cut(rest, gone)
    took = world.run_until(lambda: plan_epoch(world) > before, 8)
    assert 3.0 <= took <= 5.0
    assert plan_nodes(world) == set(rest)
    assert world.nodes[gone].worker is not None, "it cannot know yet"
    world.heal()
    world.run_until(lambda: world.ready() and world.nodes[gone].worker is None, 5)

    assert world.nodes[gone].disk.active == plan_epoch(world)
    assert plan_nodes(world) == set(rest), "a plan that runs is not broken for a node that returns"


def test_a_short_silence_changes_no_plan() -> None:
    world = World(1, 3)
    world.start(M)
    world.keep_log = True
    leader = world.coordinator()
    assert leader is not None
    other = next(n for n in "abc" if n != leader.node_id)
    world.cut("".join(n for n in "abc" if n != other), other)
    world.run(1.6)
    assert leader.up.view.liveness[other] == "suspect"
    world.heal()
    world.run(5)

    assert touched(world) == []


def test_a_daemon_that_was_started_anew_gets_a_worker_under_a_new_epoch() -> None:
    world = World(1, 3)
    world.start(M)
    before = plan_epoch(world)
    leader = world.coordinator()
    assert leader is not None
    other = next(n for n in "abc" if n != leader.node_id)
    world.crash(other)
    world.boot(other)
    world.run_until(lambda: plan_epoch(world) > before and world.ready(), 5)

    assert plan_nodes(world) == {"a", "b", "c"}
    assert world.announcements("member restarted")


def test_a_failed_worker_is_replaced_after_a_growing_wait_and_its_node_quarantined() -> None:
    world = World(1, 3)
    world.start(M)
    leader = world.coordinator()
    assert leader is not None
    victim = next(n for n in "abc" if n != leader.node_id)
    waits = []
    for _ in range(5):
        before, killed_at = plan_epoch(world), world.now
        world.kill_worker(victim)
        world.run_until(lambda before=before: plan_epoch(world) > before, 40)  # type: ignore[misc]
        waits.append(world.now - killed_at)
        world.run_until(world.ready, 10)

    for wait, backoff in zip(waits, (1, 2, 4, 8, 16), strict=True):
        assert backoff <= wait <= backoff + 1.0
    assert plan_nodes(world) == {"a", "b", "c"} - {victim}
    assert [a.facts["node_id"] for a in world.announcements("node quarantined for model")] == [victim]
    world.load(wanted_model("k"))
    world.run_until(lambda: world.ready() and plan_nodes(world) == {"a", "b", "c"}, 10)


def test_the_neighbour_that_only_lost_its_peer_is_not_blamed() -> None:
    world = World(1, 2)
    world.start(M)
    for _ in range(5):
        before = plan_epoch(world)
        worker = world.nodes["a"].worker
        assert worker is not None
        world.nodes["a"].worker = None
        report = WorkerReport(worker.epoch, worker.stage_index, WorkerState.FAILED, peer_lost=True)
        world.step(world.nodes["a"], ev.WorkerReported(report))
        world.run(0.05)
        world.kill_worker("b")
        world.run_until(lambda before=before: plan_epoch(world) > before and world.ready(), 40)  # type: ignore[misc]

    assert {a.facts["node_id"] for a in world.announcements("node quarantined for model")} == {"b"}
    assert plan_nodes(world) == {"a"}


def test_unload_ends_every_worker_under_a_new_epoch() -> None:
    world = World(1, 3)
    world.start(M)
    before = plan_epoch(world)
    change_id = world.load(None)
    world.run_until(lambda: all(n.worker is None for n in world.nodes.values()), 3)

    done = outcomes(world, change_id)[-1]
    assert isinstance(done, fx.ChangeDone)
    assert done.epoch == plan_epoch(world) > before
    world.run(1)
    for node in world.nodes.values():
        assert node.up.view.serving_state == "idle"
        assert node.disk.active == done.epoch
    world.load(M)
    world.run_until(world.ready, 10)


def test_unload_of_nothing_and_load_of_what_runs_are_done_at_once() -> None:
    world = World(1, 1)
    world.start()
    first = world.load(None)
    world.run(0.1)
    assert isinstance(outcomes(world, first)[-1], fx.ChangeDone)
    world.load(M)
    world.run_until(world.ready, 5)
    before = plan_epoch(world)
    again = world.load(M)
    world.run(2)

    assert outcomes(world, again)[-1] == fx.ChangeDone(again, before)
    assert plan_epoch(world) == before


def test_a_refused_plan_is_told_and_tried_again_when_a_node_joins() -> None:
    world = World(1, 3, expect=2, compute=at_least(3), down="c")
    world.run_until(lambda: world.coordinator() is not None, 10)
    change_id = world.load(M)
    world.run(1)
    rejected = outcomes(world, change_id)[-1]
    assert isinstance(rejected, fx.ChangeRejected)
    assert (rejected.reason, rejected.refusal_json) == ("TOO_SMALL", '{"message": "2 nodes are too few"}')
    leader = world.coordinator()
    assert leader is not None
    view = leader.up.view
    assert (view.serving_state, view.refusal_json) == ("refused", '{"message": "2 nodes are too few"}')
    assert view.stored_document is not None
    assert view.stored_document.wanted == M
    asked = len(world.announcements("planning"))
    world.run(20)
    assert len(world.announcements("planning")) == asked, "the same means are not tried again"
    world.boot("c")
    world.run_until(world.ready, 15)

    assert leader.up.view.refusal_json == ""


def test_a_refused_replacement_leaves_what_runs_alone() -> None:
    world = World(1, 3, compute=at_least(3))
    world.start(M)
    leader = world.coordinator()
    assert leader is not None
    other = next(n for n in "abc" if n != leader.node_id)
    world.keep_log = True
    world.cut("".join(n for n in "abc" if n != other), other)
    world.run(8)
    assert leader.up.view.serving_state == "refused"
    assert leader.up.view.refusal_reason == "TOO_SMALL"
    assert touched(world) == []
    world.heal()
    world.run_until(world.ready, 5)

    assert touched(world) == []
    assert leader.up.view.refusal_json == ""


def test_without_a_quorum_the_plan_serves_on_and_nothing_can_be_changed() -> None:
    world = World(1, 3, compute=on("a"))
    world.start(M)
    world.keep_log = True
    for name in "bc":
        world.crash(name)
    world.run(5)
    assert world.coordinator() is None
    change_id = world.load(None, "a")
    (rejected,) = outcomes(world, change_id)
    assert isinstance(rejected, fx.ChangeRejected)
    assert rejected.reason == "NO_QUORUM"
    worker = world.nodes["a"].worker
    assert worker is not None
    assert worker.state is WorkerState.READY
    assert touched(world) == []
    assert not world.nodes["a"].up.view.has_quorum
    world.heal()
    world.run_until(world.ready, 10)

    assert touched(world) == []


def test_a_change_at_a_follower_names_the_coordinator() -> None:
    world = World(1, 3)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    other = next(n for n in "abc" if n != leader.node_id)
    change_id = world.load(M, other)
    (rejected,) = outcomes(world, change_id)

    assert isinstance(rejected, fx.ChangeRejected)
    assert rejected.reason == "NOT_COORDINATOR"
    assert leader.node_id in rejected.message


def test_a_later_change_supersedes_an_earlier_one() -> None:
    world = World(1, 3)
    world.start()
    first = world.load(M)
    second = world.load(wanted_model("k"))
    world.run_until(world.ready, 10)
    rejected, done = outcomes(world, first)[-1], outcomes(world, second)[-1]

    assert isinstance(rejected, fx.ChangeRejected)
    assert rejected.reason == "SUPERSEDED"
    assert isinstance(done, fx.ChangeDone)


def test_a_change_whose_coordinator_falls_is_told_what_is_known() -> None:
    world = World(1, 3)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    world.keep_compute = True
    accepted = world.load(M)
    world.run(0.5)
    assert world.held_computes
    others = "".join(n for n in "abc" if n != leader.node_id)
    world.cut(others, leader.node_id)
    world.run(0.05)
    unsure = world.load(wanted_model("k"), leader)
    world.run(2)

    assert [o.reason for o in outcomes(world, accepted) if isinstance(o, fx.ChangeRejected)] == ["SUPERSEDED"]
    assert [o.reason for o in outcomes(world, unsure) if isinstance(o, fx.ChangeRejected)] == ["NO_QUORUM"]


def test_an_accepted_change_is_carried_on_by_the_next_coordinator() -> None:
    world = World(1, 3)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    world.keep_compute = True
    change_id = world.load(M)
    world.run(0.5)
    world.keep_compute = False
    world.cut("".join(n for n in "abc" if n != leader.node_id), leader.node_id)
    world.run(3)
    assert [o.reason for o in outcomes(world, change_id) if isinstance(o, fx.ChangeRejected)] == [
        "COORDINATOR_CHANGED"
    ]
    world.heal()
    world.run_until(world.ready, 15)


def test_a_planner_that_never_answers_is_given_up() -> None:
    world = World(1, 1)
    world.start()
    world.keep_compute = True
    change_id = world.load(M)
    world.run(301)

    rejected = outcomes(world, change_id)[-1]
    assert isinstance(rejected, fx.ChangeRejected)
    assert rejected.reason == "PLANNER_TIMEOUT"


def test_a_plan_on_a_node_that_went_meanwhile_is_computed_again() -> None:
    world = World(1, 3)
    world.start()
    world.keep_compute = True
    world.load(M)
    world.run(0.5)
    (held,) = world.held_computes
    leader = world.coordinator()
    assert leader is not None
    gone = next(n for n in "abc" if n != leader.node_id)
    world.crash(gone)
    world.run(4)
    world.keep_compute = False
    world.compute(*held)
    world.run_until(lambda: bool(world.announcements("plan ready")), 10)

    assert plan_nodes(world) == {"a", "b", "c"} - {gone}


def test_a_plan_is_ready_when_all_its_workers_are_and_started_anew_when_one_never_is() -> None:
    world = World(1, 2)
    world.start()
    world.load(M)
    world.run_until(lambda: bool(world.announcements("peers told")), 5)
    before = plan_epoch(world)
    world.run_until(lambda: world.nodes["b"].worker is not None and bool(world.nodes["b"].worker.key), 5)
    deaf = world.nodes["b"].worker
    assert deaf is not None
    deaf.key = b"deaf"
    world.run(5)
    states = {n: w.state for n, w in world.nodes["a"].up.view.workers.items()}
    assert states == {"a": WorkerState.READY, "b": WorkerState.LOADED}
    assert not world.announcements("plan ready")
    assert not world.ready()
    world.run_until(lambda: plan_epoch(world) > before, 30)
    world.run_until(world.ready, 5)


def test_a_second_key_never_parts_workers_that_connect() -> None:
    world = World(1, 3, compute=on("bc"))
    world.start()
    assert world.coordinator() is world.nodes["a"]
    world.load(M)
    world.run_until(
        lambda: all(n.worker is not None and n.worker.key for n in map(world.nodes.get, "bc") if n), 5
    )
    deaf = world.nodes["c"].worker
    assert deaf is not None
    deaf.key = b"deaf"
    world.run(0.1)
    world.crash("a")
    world.keep_log = True
    world.run_until(lambda: world.coordinator() is not None, 5)
    world.run(5)

    assert not [e for _, _, e in world.log if isinstance(e, fx.GivePeers)]


def test_a_planner_that_names_a_stranger_or_one_node_twice_is_refused() -> None:
    for names in ("az", "aa"):
        world = World(1, 2, compute=lambda ask, names=names: split(ask.wanted, list(names)))
        world.start()
        change_id = world.load(M)
        world.run(2)
        rejected = outcomes(world, change_id)[-1]

        assert isinstance(rejected, fx.ChangeRejected)
        assert rejected.reason == "INVALID_PLAN"


def test_a_worker_that_loads_no_further_is_started_anew() -> None:
    world = World(1, 2)
    world.start(M)
    before = plan_epoch(world)
    worker = world.nodes["b"].worker
    assert worker is not None
    stuck = WorkerReport(worker.epoch, worker.stage_index, WorkerState.LOADING, 3, 10)
    world.step(world.nodes["b"], ev.WorkerReported(stuck))
    world.run(115)
    assert plan_epoch(world) == before
    world.run_until(lambda: plan_epoch(world) > before and world.ready(), 20)
