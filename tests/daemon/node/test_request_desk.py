"""What the desk tells its requests of the plan, and when."""

from types import SimpleNamespace
from typing import Any

import pytest

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster.messages import Deployment, WorkerState
from macmesh_daemon.node.plan_seen import plan_seen
from macmesh_daemon.node.requests import RequestDesk
from macmesh_daemon.requests import events as ev
from simulator.parts import split, wanted_model
from simulator.world import World


class _Live:
    """A request that notes what it is told."""

    def __init__(self, name: str, told: list[tuple[str, ev.PlanSeen]]) -> None:
        self._name = name
        self._told = told

    def step(self, event: ev.PlanSeen) -> None:
        self._told.append((self._name, event))


@pytest.fixture
def world() -> World:
    made = World("desk", 2)
    made.start(wanted_model("m"))
    return made


def test_requests_are_told_of_a_plan_in_the_order_of_their_age_and_once(world: World) -> None:
    told: list[tuple[str, ev.PlanSeen]] = []
    node: Any = SimpleNamespace(config=SimpleNamespace(request_patience_seconds=1.0))
    tasks: Any = None  # nothing is run
    desk = RequestDesk(node, tasks)
    live: Any = {name: _Live(name, told) for name in ("z", "b", "a")}
    desk._live = live

    desk.look(world.nodes["a"].up.view)
    desk.look(world.nodes["a"].up.view)

    assert [name for name, _ in told] == ["z", "b", "a"]


def test_a_plan_is_ready_when_all_its_workers_are(world: World) -> None:
    node = world.nodes["a"]
    ready = plan_seen(node.up.view)
    assert isinstance(ready, ev.PlanReady)
    assert ready.head_node_id == "a"

    world.kill_worker("b")
    world.run_until(lambda: isinstance(plan_seen(node.up.view), ev.PlanPending), 5)
    seen: list[ev.PlanSeen] = []
    while not world.ready():
        world.run(0.01)
        seen.append(plan_seen(node.up.view))
        is_ready = isinstance(seen[-1], ev.PlanReady)
        workers = [n.worker for n in world.nodes.values()]
        assert not is_ready or all(w is not None and w.state is WorkerState.READY for w in workers)
    assert ready not in seen


def test_those_who_wait_are_told_what_is_missing_while_the_last_plan_still_stands() -> None:
    def three(ask: fx.ComputePlan) -> Deployment | None:
        return split(ask.wanted, [m.node_id for m in ask.members]) if len(ask.members) > 2 else None

    world = World("desk", 3, compute=three)
    world.start(wanted_model("m"))
    world.crash("c")
    for name in "ab":
        view = world.nodes[name].up.view
        assert view.plan is not None
        epoch = view.plan.epoch

        def told(name: str = name) -> ev.PlanSeen:
            return plan_seen(world.nodes[name].up.view)

        world.run_until(lambda: getattr(told(), "reason", "") == "DOES_NOT_FIT", 5)
        seen = told()
        assert isinstance(seen, ev.PlanPending)
        assert (seen.epoch, seen.missing) == (epoch, "2 nodes are too few")
    world.boot("c")
    world.run_until(lambda: isinstance(told(), ev.PlanReady), 20)
