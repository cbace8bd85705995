"""Seeded chaos: no invariant breaks, and after it the cluster always comes to serve what is wanted."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.cluster.state import PersistentState
from simulator.chaos import DO
from simulator.checker import Checker, InvariantBrokenError
from simulator.many import run_many
from simulator.options import ACTIONS, Options, draw
from simulator.run import RunFailedError, build, run
from simulator.world import World

SEEDS = 40
"""A taste; `make sim` runs many."""
BATCH = 20


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_chaos_breaks_no_invariant_and_passes(first: int) -> None:
    summary = run_many(range(first, first + BATCH))

    assert not summary.failures, "\n".join(summary.failures)
    assert len(summary.outcomes) == BATCH


def test_a_seed_replays_exactly() -> None:
    one, two = build(draw(7)), build(draw(7))

    assert run(draw(7), world=one) == run(draw(7), world=two)
    assert one.story == two.story


@pytest.mark.process
def test_a_seed_replays_exactly_in_another_process_with_another_hash_seed() -> None:
    def story(hash_seed: str) -> str:
        folder = Path(__file__).parents[2]
        command = [sys.executable, "-m", "simulator", "--seed", "4", "--trace", "--full"]
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout

    assert story("1") == story("2")


def test_the_chaos_is_one() -> None:
    """The faults do happen: otherwise the invariants were never in danger."""
    happened = set()
    done = set()
    actions = tuple(item for item in ACTIONS.items() if item[0] != "tear")
    for seed in range(12):
        options = Options(
            seed, "all", 4, 0, 4, seconds=20.0, pause_seconds=0.8, nack=0.2, worker_crash=0.2, actions=actions
        )
        options = replace(options, standalone_after_seconds=2.5)
        world = build(options, story_lines=None)
        run(options, world=world)
        happened |= {a.event for _, _, a in world.announced}
        done |= {what for _, node_id, what, _ in world.tale.lines if node_id == "--"}

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
        "standalone",
        "eviction begun",
        "drain begun",
        "node drained",
        "recovery forced",
        "leadership handed over",
    }
    assert done >= set(ACTIONS) - {"tear"}


def test_every_action_that_can_be_drawn_can_be_done() -> None:
    assert set(ACTIONS) == set(DO)


def test_options_are_all_there_to_replay_a_run_and_an_unknown_one_is_refused() -> None:
    options = draw(11)

    assert Options.from_json(options.to_json()) == options
    assert Options.from_json('{"loss": 0.5}', options).loss == 0.5
    with pytest.raises(ValueError, match="unknown options: los"):
        Options.from_json('{"los": 0.5}', options)


def test_a_run_that_fails_says_how_to_replay_it() -> None:
    world = build(draw(3))
    leaders = world.checker.coordinators
    leaders.update({(1, term): "nobody" for term in range(1, 100)})
    with pytest.raises(RunFailedError) as failed:
        run(draw(3), world=world)

    assert "seed 3: InvariantBrokenError: a: second coordinator" in str(failed.value)
    assert draw(3).to_json() in str(failed.value)


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
    world.checker.coordinators[leader.up._context.state.ballot] = "another"

    with pytest.raises(InvariantBrokenError, match="second coordinator"):
        world.run(1)
