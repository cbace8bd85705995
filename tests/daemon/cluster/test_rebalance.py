"""Whether a plan that serves is moved to nodes that are free, and how soon one is made where nothing serves."""

import dataclasses
from collections.abc import Callable

import pytest

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster.messages import Deployment, Epoch, Plan
from macmesh_daemon.cluster.rebalance import Gain, Rebalance
from macmesh_daemon.cluster.settings import ClusterSettings, RebalancePolicy
from simulator.parts import split, wanted_model
from simulator.world import World

M = wanted_model()
SETTINGS = ClusterSettings()
A, B, C, D = (("a", 8), ("b", 8), ("c", 8), ("d", 8))


def predicting(gain: float) -> Callable[[fx.ComputePlan], Deployment | None]:
    """A planner that predicts so much less time for each further node."""

    def compute(ask: fx.ComputePlan) -> Deployment | None:
        names = [m.node_id for m in ask.members]
        return dataclasses.replace(
            split(ask.wanted, names), predicted_objective_seconds=0.1 * (1 - gain) ** len(names)
        )

    return compute


def world_with_a_late_node(policy: RebalancePolicy, gain: float) -> World:
    world = World(
        5, 3, expect=2, down="c", compute=predicting(gain), settings=ClusterSettings(rebalance=policy)
    )
    world.run_until(lambda: world.coordinator() is not None, 20)
    world.load(M)
    leader = world.coordinator()
    assert leader is not None
    world.run_until(lambda: leader.up.view.serving_state == "ready", 20)
    world.boot("c")
    world.run(40)
    return world


def served_by(world: World) -> set[str]:
    leader = world.coordinator()
    assert leader is not None
    assert leader.up.view.serving_state == "ready"
    document = leader.up.view.document
    assert document is not None
    assert document.plan is not None
    return set(document.plan.node_ids)


@pytest.mark.parametrize(
    ("policy", "gain", "nodes", "why"),
    [
        ("when_it_pays", 0.25, {"a", "b", "c"}, ""),
        ("when_it_pays", 0.05, {"a", "b"}, "less than the 10% that a move must gain"),
        ("never", 0.25, {"a", "b"}, "never"),
        ("always", 0.05, {"a", "b", "c"}, ""),
    ],
)
def test_a_joiner_is_taken_in_by_policy_and_everybody_is_told_why_not(
    policy: RebalancePolicy, gain: float, nodes: set[str], why: str
) -> None:
    world = world_with_a_late_node(policy, gain)

    assert served_by(world) == nodes
    for node in world.nodes.values():
        assert why in node.up.view.kept_reason
        assert bool(node.up.view.kept_reason) == bool(why)
    asked = [a for a in world.announcements("planning") if "more to plan with" in str(a.facts["reason"])]
    assert len(asked) == (0 if policy == "never" else 1), "it is worked out once, not again and again"


def test_what_was_lost_is_replaced_at_once_whatever_the_policy() -> None:
    world = world_with_a_late_node("never", 0.0)
    leader = world.coordinator()
    assert leader is not None
    lost = next(n for n in "ba" if n != leader.node_id)
    world.crash(lost)
    world.run_until(lambda: lost not in _planned(world), 6)
    assert _planned(world) == set(world.nodes) - {lost}


def _planned(world: World) -> set[str]:
    leader = world.coordinator()
    document = leader.up.view.document if leader is not None else None
    return set(document.plan.node_ids) if document is not None and document.plan is not None else set()


def too_small(count: int = 3) -> World:
    def compute(ask: fx.ComputePlan) -> Deployment | None:
        names = [m.node_id for m in ask.members]
        return split(ask.wanted, names) if len(names) >= count else None

    world = World(7, count, compute=compute)
    world.start(M)
    return world


@pytest.mark.parametrize("losses", [1, 3])
def test_where_nothing_fits_the_wish_stays_and_a_node_that_is_back_is_planned_at_once(losses: int) -> None:
    """Also after other plans in a row, whose hold-down would make gained capacity wait a minute."""
    world = too_small()
    leader = world.coordinator()
    assert leader is not None
    lost = next(n for n in reversed(world.nodes) if n != leader.node_id)
    for _ in range(losses):
        world.kill_worker(leader)
        world.run(20)
    world.crash(lost)
    world.run_until(lambda: leader.up.view.serving_state == "refused", 10)
    for name, node in world.nodes.items():
        if name != lost:
            world.run(1.5)
            view = node.up.view
            assert view.serving_state == "refused"
            assert view.refusal_reason == "TOO_SMALL"
            assert view.refusal_json == '{"message": "2 nodes are too few"}'
            assert view.is_unserved
            assert view.document is not None
            assert view.document.wanted == M
    world.boot(lost)
    world.run_until(lambda: leader.up.view.liveness[lost] == "alive", 10)
    back = world.now
    world.run_until(lambda: any(a.event == "planning" and at >= back for at, _, a in world.announced), 1)
    world.run_until(world.ready, 10)
    assert not leader.up.view.is_unserved


def test_a_node_that_comes_and_goes_serves_where_nothing_fits_without_it_unless_it_is_drained() -> None:
    world = too_small()
    leader = world.coordinator()
    assert leader is not None
    flapper = next(n for n in reversed(world.nodes) if n != leader.node_id)
    for _ in range(4):
        world.crash(flapper)
        world.run_until(lambda: leader.up.view.liveness[flapper] == "dead", 10)
        world.boot(flapper)
        world.run_until(world.ready, 10)
    assert flapper in leader.up.view.not_planned, "it is damped all the same"
    assert flapper in _planned(world)

    world.drain(flapper, force=True)
    world.run_until(lambda: leader.up.view.serving_state == "refused", 10)
    refused = world.now
    world.run(20)
    assert flapper not in _planned(world)
    assert leader.up.view.serving_state == "refused"
    asked = [a for at, _, a in world.announced if a.event == "planning" and at > refused]
    assert len(asked) <= 1, "it is no last resort, so nothing new can come of asking"


# -- the pure part ------------------------------------------------------------------------------------


def plan(names: str) -> Plan:
    return Plan(Epoch(1, 1, 1), (split(M, list(names)),), M)


def test_a_gain_waits_until_no_more_joins() -> None:
    rebalance = Rebalance(SETTINGS)
    rebalance.planned(plan("ab"), frozenset({A, B}))
    assert rebalance.wish(plan("ab"), frozenset({A, B}), 0.0) is None
    assert rebalance.wish(plan("ab"), frozenset({A, B, C}), 1.0) is None
    assert rebalance.wish(plan("ab"), frozenset({A, B, C, D}), 3.5) is None
    assert rebalance.wish(plan("ab"), frozenset({A, B, C, D}), 6.0) is None
    wish = rebalance.wish(plan("ab"), frozenset({A, B, C, D}), 6.5)
    assert wish == Gain("there is more to plan with: c, d")


def test_what_was_judged_is_not_judged_again_nor_what_is_less() -> None:
    rebalance = Rebalance(SETTINGS)
    rebalance.planned(plan("ab"), frozenset({A, B}))
    rebalance.kept(frozenset({A, B, C}), "no gain")
    for now in (0.0, 100.0):
        assert rebalance.wish(plan("ab"), frozenset({A, B, C}), now) is None
        assert rebalance.kept_reason == "no gain"
    assert rebalance.wish(plan("ab"), frozenset({A, B}), 200.0) is None
    assert rebalance.kept_reason == "", "no node is free any more"
    rebalance.kept(frozenset({A, B, D}), "no gain")
    rebalance.wish(plan("ab"), frozenset({A, B, C, D}), 300.0)
    assert rebalance.wish(plan("ab"), frozenset({A, B, C, D}), 303.0), "both at once are something new"


def test_a_plan_that_was_taken_over_is_looked_into_once_more() -> None:
    rebalance = Rebalance(SETTINGS)
    rebalance.wish(plan("ab"), frozenset({A, B, C}), 0.0)
    assert rebalance.wish(plan("ab"), frozenset({A, B, C}), 3.0) is not None


def test_more_memory_of_a_node_of_the_plan_is_a_gain_too() -> None:
    rebalance = Rebalance(SETTINGS)
    rebalance.planned(plan("ab"), frozenset({A, B}))
    grown = frozenset({A, ("b", 16)})
    rebalance.wish(plan("ab"), grown, 0.0)
    assert rebalance.wish(plan("ab"), grown, 3.0) is not None


@pytest.mark.parametrize(
    ("policy", "found", "pays"),
    [
        ("when_it_pays", {"predicted_objective_seconds": 0.89}, True),
        ("when_it_pays", {"predicted_objective_seconds": 0.91}, False),
        ("when_it_pays", {"predicted_objective_seconds": 1.5, "context_tokens": 4096}, True),
        ("when_it_pays", {"predicted_objective_seconds": 0.0}, False),
        ("always", {"predicted_objective_seconds": 1.5}, True),
    ],
)
def test_when_a_move_pays(policy: RebalancePolicy, found: dict[str, float], pays: bool) -> None:
    rebalance = Rebalance(ClusterSettings(rebalance=policy))
    current = dataclasses.replace(split(M, ["a", "b"]), predicted_objective_seconds=1.0)
    other = dataclasses.replace(split(M, ["a", "b", "c"]), **found)  # type: ignore[arg-type]
    assert (rebalance.why_kept(current, other) == "") is pays


def test_the_same_stages_are_no_move_even_where_always_is_the_policy() -> None:
    rebalance = Rebalance(ClusterSettings(rebalance="always"))
    current = split(M, ["a", "b"])
    assert "best one" in rebalance.why_kept(current, dataclasses.replace(current, transport="tcp"))


def test_older_plans_are_compared_by_their_decode_time() -> None:
    rebalance = Rebalance(SETTINGS)
    current = dataclasses.replace(split(M, ["a", "b"]), predicted_decode_seconds=1.0)
    other = dataclasses.replace(
        split(M, ["a", "b", "c"]), predicted_decode_seconds=0.5, predicted_objective_seconds=0.5
    )
    assert rebalance.why_kept(current, other) == ""
