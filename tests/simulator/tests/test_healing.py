"""What a run expects when all faults have ended: neither less than was promised nor more."""

import pytest

from macmesh_daemon.cluster.messages import PrepareRequest
from simulator.checker import InvariantBrokenError
from simulator.parts import wanted_model
from simulator.run import _fail_over, _stop_evicted, _until_agreed, leads
from simulator.world import World


def _parted(count: int, down: str, *, denied: str, by_force: str) -> World:
    """A cluster whose coordinator a evicts nodes behind cuts, which go on by force; then all heals."""
    world = World(1, count, expect=1, down=down)
    world.run(3.0)
    for node_id in denied:
        world.evict(node_id, "a")
    world.run(2.0)
    for at, node_id in enumerate(by_force, 1):
        gone = by_force[:at]
        world.cut("".join(name for name in world.nodes if name not in gone), *gone)
        world.evict(node_id, "a")
        world.run(3.0)
    for node_id in by_force:
        world.recover(node_id)
        world.run(2.0)
    world.heal()
    return world


def test_of_two_clusters_that_people_made_one_is_stopped_and_not_a_bystander() -> None:
    """c was evicted before it ever came, and is in neither cluster: to stop it settles nothing."""
    world = _parted(3, "c", denied="c", by_force="b")
    assert world.nodes["b"].drive.state.generation > world.nodes["a"].drive.state.generation

    _until_agreed(world)

    assert [node.node_id for node in world.nodes.values() if node.is_gone] == ["b"]
    assert world.agreed()


def test_all_who_went_on_by_force_are_stopped_however_many_they_are() -> None:
    world = _parted(3, "", denied="", by_force="cb")

    _until_agreed(world)

    assert [node.node_id for node in world.nodes.values() if node.is_gone] == ["b", "c"]
    assert world.agreed()


def test_without_a_recovery_by_force_nobody_is_stopped_not_even_who_was_evicted() -> None:
    world = World(1, 3)
    world.start()
    world.cut("ab", "c")
    world.evict("c", "a")
    world.run(5.0)
    world.heal()
    _until_agreed(world)

    assert not _stop_evicted(world)
    assert not any(node.is_gone for node in world.nodes.values())


def test_where_each_of_two_has_evicted_the_other_the_end_of_one_says_nothing_of_the_other() -> None:
    world = World(1, 2)
    world.start()
    world.cut("a", "b")
    world.evict("b", "a")
    world.run(3.0)
    world.recover("b")
    world.run(1.0)
    world.evict("a", "b")
    world.run(3.0)
    world.heal()
    _until_agreed(world)
    world.run_until(lambda: all(leads(node) for node in world.nodes.values()), 5.0)

    assert _fail_over(world) is None
    assert leads(world.nodes["a"])


def test_a_coordinator_of_the_same_generation_without_a_quorum_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(1, 2)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    other = next(node for node in world.nodes.values() if node is not leader)
    world.later(1.0, lambda: other.up._election._on_elected(world.now, frozenset("ab")))
    monkeypatch.setattr(world.checker, "on_step", lambda *_: None)  # here the run itself is to see it

    with pytest.raises(AssertionError, match="a coordinator without a quorum"):
        _fail_over(world)


def test_the_rest_agrees_while_its_document_still_names_a_node_that_was_stopped_for_good() -> None:
    world = World(1, 3)
    world.start()
    world.crash("c")
    assert not world.agreed()
    world.nodes["c"].is_gone = True

    assert world.agreed()


def _load_until_asked(world: World, node_id: str) -> None:
    """Load a model, and stop in the moment in which a node is asked to promise the plan."""
    world.start()
    world.load(wanted_model())
    node = world.nodes[node_id]

    def is_asked() -> bool:
        calls = [world.taken[request_id][0] for request_id in node.open_requests]
        return any(isinstance(call.send.message, PrepareRequest) for call in calls)

    world.run_until(is_asked, 5.0)


def test_a_request_that_came_a_moment_ago_may_still_be_answered() -> None:
    world = World(1, 3)
    _load_until_asked(world, "b")

    world.check_requests_are_answered()

    assert not world.nodes["b"].open_requests


def test_a_request_that_is_not_answered_is_found_and_one_that_is_old_at_once() -> None:
    world = World(1, 3)
    world.hold_prepare_checks = {"b"}
    _load_until_asked(world, "b")
    begin = world.now

    with pytest.raises(InvariantBrokenError, match="b never answered request"):
        world.check_requests_are_answered()
    assert begin + 1.5 < world.now < begin + 2.5

    begin = world.now
    with pytest.raises(InvariantBrokenError, match="b never answered request"):
        world.check_requests_are_answered()
    assert world.now - begin < 0.3
