"""Members that are drained: tried, marked, planned around, undone."""

from collections.abc import Callable

import pytest

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import ClusterDocument, Deployment, PrepareRequest
from macmesh_daemon.cluster.settings import ClusterSettings
from simulator.node import SimNode
from simulator.parts import split, wanted_model
from simulator.world import World

M = wanted_model()


def at_least(count: int) -> Callable[[fx.ComputePlan], Deployment | None]:
    def compute(ask: fx.ComputePlan) -> Deployment | None:
        names = [m.node_id for m in ask.members]
        return split(ask.wanted, names) if len(names) >= count else None

    return compute


def leader_of(world: World) -> SimNode:
    leader = world.coordinator()
    assert leader is not None
    return leader


def led(world: World) -> ClusterDocument:
    found = leader_of(world).up.view.document
    assert found is not None
    return found


def planned(world: World) -> set[str]:
    plan = led(world).plan
    return set(plan.node_ids) if plan is not None else set()


def other_than(world: World, *node_ids: str) -> str:
    return next(n for n in reversed(world.nodes) if n not in node_ids)


def outcome(world: World, change_id: int) -> fx.ChangeDone | fx.ChangeRejected:
    world.run_until(lambda: bool(_ends(world, change_id)), 10)
    (end,) = _ends(world, change_id)
    return end


def _ends(world: World, change_id: int) -> list[fx.ChangeDone | fx.ChangeRejected]:
    return [
        o
        for node in world.nodes.values()
        for o in node.outcomes
        if o.change_id == change_id and not isinstance(o, fx.ChangeAccepted)
    ]


def serving(count: int, needed: int = 1) -> World:
    world = World(11, count, compute=at_least(needed))
    world.start(M)
    return world


def test_a_drained_member_gives_its_stage_up_and_goes_on_voting() -> None:
    world = serving(3)
    target = other_than(world, leader_of(world).node_id)
    change = world.drain(target)

    assert isinstance(outcome(world, change), fx.ChangeDone)
    assert leader_of(world).up.view.serving_state == "ready", "the old plan serves while another is made"
    world.run_until(lambda: target not in planned(world), 5)
    world.run_until(lambda: world.nodes[target].worker is None and world.ready(), 10)
    assert [a.facts["node_id"] for a in world.announcements("node drained")] == [target]
    member = led(world).member(target)
    assert member is not None
    assert member.voter
    assert member.draining
    assert "drained" in leader_of(world).up.view.not_planned[target]


def test_a_drain_that_leaves_too_little_is_refused_before_anything_moves() -> None:
    world = serving(3, needed=3)
    target = other_than(world, leader_of(world).node_id)
    before = led(world).plan
    refused = outcome(world, world.drain(target))

    assert isinstance(refused, fx.ChangeRejected)
    assert refused.reason == "TOO_SMALL"
    assert refused.refusal_json == '{"message": "2 nodes are too few"}'
    world.run(5)
    assert led(world).plan == before
    assert not any(member.draining for member in led(world).members)
    assert leader_of(world).up.view.serving_state == "ready"


def test_by_force_what_is_served_ends_where_too_little_is_left_and_goes_on_when_that_is_undone() -> None:
    world = serving(3, needed=3)
    target = other_than(world, leader_of(world).node_id)
    assert isinstance(outcome(world, world.drain(target, force=True)), fx.ChangeDone)
    world.run_until(lambda: not planned(world), 5)
    world.run_until(lambda: all(node.worker is None for node in world.nodes.values()), 5)
    world.run_until(lambda: leader_of(world).up.view.serving_state == "refused", 5)
    assert led(world).wanted == M

    assert isinstance(outcome(world, world.drain(target, undo=True)), fx.ChangeDone)
    world.run_until(world.ready, 5)
    assert target in planned(world)


def test_a_member_that_serves_nothing_is_not_tried() -> None:
    world = World(11, 3)
    world.start()
    assert isinstance(outcome(world, world.drain("c")), fx.ChangeDone)
    assert not world.announcements("drain tried")
    world.load(M)
    world.run_until(world.ready, 10)
    assert planned(world) == {"a", "b"}


def test_the_last_node_cannot_be_drained_but_by_force() -> None:
    world = serving(1)
    refused = outcome(world, world.drain("a"))
    assert isinstance(refused, fx.ChangeRejected)
    assert refused.reason == "NO_ELIGIBLE_NODE"


def test_a_stranger_is_no_node_to_drain() -> None:
    world = serving(2)
    refused = outcome(world, world.drain("z"))
    assert isinstance(refused, fx.ChangeRejected)
    assert refused.reason == "UNKNOWN_NODE"


def test_a_follower_says_whom_to_ask() -> None:
    world = serving(2)
    follower = other_than(world, leader_of(world).node_id)
    change = world.ask(follower, lambda change_id: ev.DrainWanted(change_id, follower))
    refused = outcome(world, change)
    assert isinstance(refused, fx.ChangeRejected)
    assert refused.reason == "NOT_COORDINATOR"


def test_a_later_wish_for_the_same_node_takes_the_place_of_one_that_is_tried() -> None:
    world = serving(3)
    target = other_than(world, leader_of(world).node_id)
    world.keep_compute = True
    drain, undo = world.drain(target), world.drain(target, undo=True)
    refused = outcome(world, drain)
    assert isinstance(refused, fx.ChangeRejected)
    assert refused.reason == "SUPERSEDED"
    assert isinstance(outcome(world, undo), fx.ChangeDone)
    assert not any(member.draining for member in led(world).members)


def test_two_drains_are_tried_one_after_the_other_so_that_both_cannot_take_too_much() -> None:
    world = serving(4, needed=3)
    leader = leader_of(world).node_id
    first, second = [n for n in world.nodes if n != leader][:2]
    ends = [world.drain(first), world.drain(second)]

    assert isinstance(outcome(world, ends[0]), fx.ChangeDone)
    assert isinstance(outcome(world, ends[1]), fx.ChangeRejected)
    assert [m.node_id for m in led(world).members if m.draining] == [first]


def test_a_drained_coordinator_hands_over_before_the_plan_moves() -> None:
    world = serving(3)
    first = leader_of(world).node_id
    assert isinstance(outcome(world, world.drain(first)), fx.ChangeDone)
    world.run_until(lambda: world.coordinator() is not None and leader_of(world).node_id != first, 5)
    world.run_until(lambda: first not in planned(world), 10)

    plan = led(world).plan
    assert plan is not None
    assert plan.epoch is not None
    assert plan.epoch.term > 1, "its successor made the plan"
    planners = [
        node
        for _, node, a in world.announced
        if a.event == "planning" and "drained" in str(a.facts["reason"])
    ]
    assert planners == [leader_of(world).node_id]
    world.run_until(world.ready, 10)
    assert leader_of(world).node_id != first


def test_a_plan_under_way_that_has_the_drained_node_is_given_up_for_one_without_it() -> None:
    world = World(11, 3)
    world.start()
    target = other_than(world, leader_of(world).node_id)
    world.hold_prepare_checks = {target}
    world.load(M)
    world.run_until(lambda: bool(world.announcements("plan computed")), 5)
    world.run(0.2)
    assert isinstance(outcome(world, world.drain(target)), fx.ChangeDone)
    world.run_until(world.ready, 4)
    assert planned(world) == set(world.nodes) - {target}


def test_where_all_are_drained_somebody_leads_all_the_same() -> None:
    world = serving(3)
    for node_id in list(world.nodes):
        outcome(world, world.drain(node_id, force=True))
        world.run(2)
    world.run(5)
    assert world.agreed()
    assert not planned(world)


def test_a_node_that_is_to_leave_says_goodbye_and_comes_back_when_the_drain_is_undone() -> None:
    world = serving(3)
    target = other_than(world, leader_of(world).node_id)
    outcome(world, world.drain(target, leave=True))
    leader = leader_of(world)
    world.run_until(lambda: leader.up.view.liveness[target] == "left", 10)
    assert world.nodes[target].worker is None
    world.crash(target)
    world.boot(target)
    world.run(5)
    assert leader.up.view.liveness[target] == "left", "it stays away, also after a start"

    outcome(world, world.drain(target, undo=True))
    world.run_until(world.all_alive, 5)


def test_nodes_that_left_come_back_to_elect_where_nobody_leads() -> None:
    world = serving(3)
    first = leader_of(world).node_id
    for node_id in [n for n in world.nodes if n != first]:
        outcome(world, world.drain(node_id, leave=True))
        world.run(2)
    world.crash(first)
    world.run_until(lambda: world.coordinator() is not None, 10)
    assert leader_of(world).node_id != first


@pytest.mark.parametrize("policy", ["never", "when_it_pays", "always"])
def test_whatever_the_policy_a_drain_acts(policy: str) -> None:
    world = World(11, 3, settings=ClusterSettings(rebalance=policy))  # type: ignore[arg-type]
    world.start(M)
    target = other_than(world, leader_of(world).node_id)
    outcome(world, world.drain(target))
    world.run_until(lambda: target not in planned(world), 5)


def test_members_may_read_ahead_where_the_old_plan_serves_and_only_there() -> None:
    world = World(11, 3)
    world.keep_log = True
    world.start(M)
    assert set(_read_ahead_seconds(world)) == {0.0}
    leader = leader_of(world).node_id
    target = other_than(world, leader)
    world.log.clear()
    outcome(world, world.drain(target))
    world.run_until(lambda: target not in planned(world), 5)
    assert set(_read_ahead_seconds(world)) == {ClusterSettings().read_ahead_seconds}

    world.run_until(world.ready, 10)
    world.log.clear()
    world.crash(other_than(world, leader, target))
    world.run_until(lambda: len(planned(world)) == 1, 10)
    assert set(_read_ahead_seconds(world)) <= {0.0}


def _read_ahead_seconds(world: World) -> list[float]:
    return [
        call.message.read_ahead_seconds
        for _, _, call in world.log
        if isinstance(call, fx.Send) and isinstance(call.message, PrepareRequest)
    ]
