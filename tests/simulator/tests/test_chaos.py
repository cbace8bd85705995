"""Seeded chaos: no invariant breaks, and after it the cluster always comes to serve what is wanted."""

import pytest

from daemon.cluster.chaos import chaos
from daemon.cluster.checker import Checker, InvariantBrokenError
from daemon.cluster.sim import World
from daemon.cluster.sim_parts import wanted_model
from macmesh_daemon.cluster.messages import Ballot, Epoch
from macmesh_daemon.cluster.state import PersistentState

SEEDS = 200
BATCH = 20


def live_through(seed: int) -> World:
    """Chaos, then healing, then one more wish; raises where safety or liveness is lost."""
    world = World(seed, 1 + seed % 5, expect=1 if seed % 3 == 0 else None)
    try:
        chaos(world, 10)
        world.heal()
        world.run_until(world.agreed, 30)
        world.insist(wanted_model("final"), 60)
        world.run_until(world.ready, 60)
        open_requests = {n.node_id: n.open_requests for n in world.nodes.values() if n.open_requests}
        assert not open_requests, f"never answered: {open_requests}"
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}\n{world.story}") from error
    return world


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_chaos_breaks_no_invariant_and_passes(first: int) -> None:
    for seed in range(first, first + BATCH):
        live_through(seed)


def test_a_seed_replays_exactly() -> None:
    one, two = live_through(7), live_through(7)

    assert one.now == two.now
    assert one.steps == two.steps
    assert one.story == two.story


def test_the_chaos_is_one() -> None:
    """The faults do happen: otherwise the invariants were never in danger."""
    worlds = [live_through(seed) for seed in range(300, 316)]
    happened = {a.event for world in worlds for _, _, a in world.announced}

    assert happened >= {
        "coordinator elected",
        "coordinator stepped down",
        "coordinator lost",
        "member dead",
        "member restarted",
        "plan committed",
        "plan ready",
        "prepare refused",
        "worker ended",
    }
    assert sum(len(world.checker.coordinators) for world in worlds) > len(worlds)


def test_the_checker_sees_a_second_vote_a_lost_promise_and_a_second_worker() -> None:
    node = World(1, 1).nodes["a"]
    checker = Checker()
    node.disk = PersistentState(generation=1, term=2, voted_for="a", promised=Epoch(1, 2, 2))
    for broken in (
        PersistentState(generation=1, term=2, voted_for="b", promised=Epoch(1, 2, 2)),
        PersistentState(generation=1, term=1, promised=Epoch(1, 2, 2)),
        PersistentState(generation=1, term=2, voted_for="a", promised=Epoch(1, 2, 1)),
        PersistentState(generation=1, term=2, voted_for="a", promised=Epoch(1, 2, 2), active=Epoch(1, 2, 3)),
    ):
        with pytest.raises(InvariantBrokenError):
            checker.on_persist(node, broken)
    with pytest.raises(InvariantBrokenError, match="not committed"):
        checker.on_start_worker(node, Epoch(1, 2, 2))


def test_the_checker_sees_a_second_coordinator() -> None:
    world = World(1, 3)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    ballot: Ballot = leader.up._context.state.ballot
    world.checker.coordinators[ballot] = "another"

    with pytest.raises(InvariantBrokenError, match="second coordinator"):
        world.run(1)
