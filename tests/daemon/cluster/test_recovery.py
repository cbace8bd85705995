"""A recovery by force begins a generation that outranks and fences every older one."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.generations import next_generation, recovery_count
from macmesh_daemon.cluster.messages import (
    ClusterDocument,
    Epoch,
    HeartbeatRequest,
    HeartbeatResponse,
    RequestVoteRequest,
    RequestVoteResponse,
)
from macmesh_daemon.cluster.quorum import weights
from macmesh_daemon.cluster.state import PersistentState
from simulator.parts import wanted_model
from simulator.solo import Solo, beat, document, kinds, only, stored, vote
from simulator.world import World

M = wanted_model()


def members(world: World, node_id: str) -> ClusterDocument:
    found = world.nodes[node_id].up.view.document
    assert found is not None
    return found


@given(st.integers(1, 2**62), st.text(max_size=8), st.binary(max_size=8), st.binary(max_size=8))
def test_a_generation_is_above_every_one_it_can_follow(g: int, name: str, one: bytes, two: bytes) -> None:
    first = next_generation(g, name, one)

    assert first > g
    assert recovery_count(first) == recovery_count(g) + 1
    assert next_generation(first, name, two) > first


def test_two_operators_on_two_sides_get_two_generations() -> None:
    assert next_generation(1, "a", bytes(32)) != next_generation(1, "b", bytes(32))
    assert next_generation(1, "a", bytes(32)) != next_generation(1, "a", b"\1" + bytes(31))


def test_recovery_makes_a_durable_generation_with_this_node_as_the_only_voter() -> None:
    node = Solo(stored("abc"))
    effects = node.step(ev.RecoverWanted(5), after=3)
    (done,) = only(effects, fx.ChangeDone)
    view = node.machine.view

    assert done.change_id == 5
    assert kinds(effects).index("Persist") < kinds(effects).index("ChangeDone")
    assert view.role == "coordinator"
    assert node.state.document == view.document
    assert view.document is not None
    assert recovery_count(view.document.generation) == 1
    assert weights(view.document) == {"b": 1}
    assert [m.node_id for m in view.document.members] == ["a", "b", "c"]
    assert done.epoch.generation == view.document.generation
    again = node.reboot()
    assert again.machine.view.generation == view.generation


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Solo(), "NO_DOCUMENT"),
        (Solo(stored("ac")), "EVICTED"),
    ],
)
def test_recovery_is_refused_where_there_is_nothing_to_go_on_from(node: Solo, reason: str) -> None:
    before = node.machine.view
    (rejected,) = only(node.step(ev.RecoverWanted(1)), fx.ChangeRejected)

    assert rejected.reason == reason
    assert node.machine.view.generation == before.generation


def test_recovery_is_refused_while_a_coordinator_leads() -> None:
    node = Solo(stored())
    node.answer("a", beat(1))
    (rejected,) = only(node.step(ev.RecoverWanted(1)), fx.ChangeRejected)

    assert rejected.reason == "HAS_QUORUM"
    assert node.state.generation == 1


def test_an_older_generation_is_answered_with_the_newer() -> None:
    node = Solo(stored("abc"))
    node.step(ev.RecoverWanted(1))
    generation = node.machine.view.generation
    told = node.answer("a", beat(9))
    refused = node.answer("a", vote(9))

    assert isinstance(told, HeartbeatResponse)
    assert (told.accepted, told.generation) == (False, generation)
    assert isinstance(refused, RequestVoteResponse)
    assert (refused.granted, refused.generation) == (False, generation)


def test_a_document_of_an_older_generation_elects_nobody_in_the_newer() -> None:
    """Its voters are no quorum of the recovery: they could overrule what that has committed."""
    old = PersistentState(generation=1, term=3, document=document("abc", term=3))
    node = Solo(old)
    node.step(ev.ResponseReceived("a", HeartbeatResponse(generation=2 << 40, term=1), 1.0))
    assert node.state.ballot == (2 << 40, 1)
    for _ in range(5):
        assert "Send" not in kinds(node.tick())
    assert node.machine.view.role == "follower"
    voter = Solo(dataclasses.replace(old, generation=2 << 40, term=1))
    asked = RequestVoteRequest(False, 2 << 40, 2, 1, 3, 9)  # noqa: FBT003  as on the wire
    answer = voter.answer("c", asked, after=9)
    assert isinstance(answer, RequestVoteResponse)
    assert not answer.granted


def test_a_node_of_the_old_generation_adopts_the_new_and_its_worker_ends_first() -> None:
    world = World(3, 3)
    world.start(M)
    world.cut("ab", "c")
    world.run(5)
    lost = world.nodes["c"]
    epochs = {n: world.nodes[n].up.view.active for n in "abc"}
    world.step(lost, ev.RecoverWanted(1))
    world.run(5)
    assert lost.up.view.role == "coordinator"
    world.heal()
    world.run_until(world.agreed, 10)
    world.run_until(world.ready, 20)
    world.run(1)
    assert set(weights(members(world, "a")).values()) == {1}
    for name, before in epochs.items():
        active = world.nodes[name].up.view.active
        assert before is not None
        assert active is not None
        assert active > before
        assert active.generation == lost.up.view.generation
    assert members(world, "a").wanted == M


def test_two_recoveries_meet_and_one_of_them_wins_everywhere() -> None:
    world = World(4, 4)
    world.start(M)
    world.cut("a", "b", "cd")
    world.run(5)
    for name in "bc":
        world.step(world.nodes[name], ev.RecoverWanted(1))
    world.run(4)
    generations = {n: world.nodes[n].up.view.generation for n in "bc"}
    assert generations["b"] != generations["c"]
    assert world.nodes["d"].up.view.generation == generations["c"]
    world.heal()
    world.run_until(world.agreed, 20)
    world.run_until(world.ready, 20)

    assert {n.up.view.generation for n in world.nodes.values()} == {max(generations.values())}


def test_the_loser_of_two_recoveries_hands_its_nodes_over() -> None:
    node = Solo(stored("abc"))
    node.step(ev.RecoverWanted(1), after=3)
    own = node.machine.view.document
    assert own is not None
    higher = own.generation + 1
    theirs = dataclasses.replace(
        document("abc", term=1), generation=higher, plan=None, denied_node_ids=(), policy=own.policy
    )
    answer = node.answer("a", HeartbeatRequest(higher, 1, 1, theirs))

    assert isinstance(answer, HeartbeatResponse)
    assert answer.accepted
    assert node.state.document == theirs
    assert node.machine.view.coordinator_node_id == "a"


def test_a_node_that_was_to_go_stays_where_a_person_goes_on_with_it() -> None:
    """Its own eviction is void then: nobody is left to hand over to, and no plan would have it."""
    world = World(1, 3)
    world.start(M)
    world.evict("c", "a")
    world.evict("a", "a")
    world.run_until(lambda: {m.node_id for m in members(world, "a").members if m.evicting} == {"a", "c"}, 2)
    world.crash("b")
    world.crash("c")
    world.run(3)
    world.recover("a")
    world.run_until(lambda: world.nodes["a"].up.view.serving_state == "ready", 10)

    assert [(m.node_id, m.evicting) for m in members(world, "a").members if m.node_id == "a"] == [
        ("a", False)
    ]
    assert "c" in members(world, "a").denied_node_ids, "the other eviction goes on"


def test_an_epoch_of_the_recovery_is_above_all_older_ones() -> None:
    node = Solo(stored("abc", term=900))
    (done,) = only(node.step(ev.RecoverWanted(1), after=3), fx.ChangeDone)

    assert done.epoch > Epoch(1, 2**60, 2**60)
