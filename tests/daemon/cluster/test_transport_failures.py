"""A group transport that failed is not tried again until something has changed."""

import dataclasses

import pytest

from daemon.cluster.test_rollout import Takeover
from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import (
    Epoch,
    HeartbeatResponse,
    NodeFacts,
    Plan,
    SetPeersRequest,
    SetPeersResponse,
    WorkerReport,
    WorkerState,
)
from simulator.parts import facts_of, split, wanted_model
from simulator.solo import Solo, beat, only

WANTED = wanted_model()
OVER_JACCL = dataclasses.replace(split(WANTED, ["a", "c"]), transport="jaccl")
PLAN = Plan(Epoch(1, 1, 1), (OVER_JACCL,), WANTED)
FAILURE = fx.TransportFailure(frozenset("ac"), "the group delivers wrong data", "jaccl")


class World(Takeover):
    """Its plan runs over jaccl."""

    def __init__(self) -> None:
        super().__init__()
        document = self.node.state.document
        assert document is not None
        state = dataclasses.replace(self.node.state, document=dataclasses.replace(document, plan=PLAN))
        self.node = Solo(state)

    def tell(self, name: str, **changes: object) -> None:
        worker = self.told[name].worker
        assert worker is not None
        self.told[name] = dataclasses.replace(
            self.told[name],
            worker=dataclasses.replace(worker, **changes),  # type: ignore[arg-type]
        )

    def _do(self, effects: list[fx.Effect]) -> None:
        peers = [e for e in only(effects, fx.Send) if isinstance(e.message, SetPeersRequest)]
        super()._do([e for e in effects if e not in peers])
        for call in peers:
            accepted = SetPeersResponse(PLAN.epoch, True, "", 2, 1)  # noqa: FBT003
            self._do(self.node.step(ev.ResponseReceived(call.peer, accepted, 1.0)))

    def failures(self) -> tuple[fx.TransportFailure, ...]:
        return self.asked()[-1].transport_failures

    def refuse(self) -> None:
        """The planner finds nothing: it is asked again once the means have changed."""
        self._do(self.node.step(ev.PlanRefused(self.asked()[-1].request_id, "DOES_NOT_FIT", "{}")))

    def recable(self, name: str) -> None:
        facts = dataclasses.replace(facts_of(name), rdma_json='{"cable": 2}')
        self.told[name] = dataclasses.replace(self.told[name], facts=facts)


def test_the_next_plan_is_told_of_a_failed_transport_until_a_device_changes() -> None:
    world = World()
    world.run(2)
    world.tell("c", state=WorkerState.FAILED, error="lost a", peer_lost=True)
    world.tell("a", state=WorkerState.FAILED, error="wrong", transport_failure=FAILURE.reason)
    world.run(3)
    assert world.failures() == (FAILURE,)
    assert world.node.machine.view.transport_failures == {(FAILURE.node_ids, "jaccl"): FAILURE.reason}
    world.refuse()
    asked = len(world.asked())
    world.recable("c")
    world.run(10)
    assert len(world.asked()) > asked
    assert world.failures() == ()


def test_a_death_makes_room_for_another_try() -> None:
    world = World()
    world.run(2)
    world.tell("a", state=WorkerState.FAILED, transport_failure=FAILURE.reason)
    world.run(3)
    assert world.failures() == (FAILURE,)
    world.told["a"] = dataclasses.replace(world.told["a"], accepted=False)  # as if it were silent
    world.run(6)
    assert world.node.machine.view.transport_failures == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"error": "exit code 1"}, "the worker of a ended in its set-up: exit code 1"),
        ({"error": "lost c", "peer_lost": True}, ""),
    ],
)
def test_a_worker_that_ends_without_a_word_while_it_connects_is_put_down_to_the_transport(
    changes: dict[str, object], told: str
) -> None:
    world = World()
    for name in "ac":
        world.tell(name, state=WorkerState.LOADED)
    world.run(2)
    world.tell("a", state=WorkerState.FAILED, **changes)
    world.run(4)
    assert [failure.reason for failure in world.failures()] == ([told] if told else [])


def test_workers_that_never_connect_are_put_down_to_it_and_a_later_end_is_not() -> None:
    world = World()
    for name in "ac":
        world.tell(name, state=WorkerState.LOADED)
    world.run(25)
    assert [f.reason for f in world.failures()] == ["the workers do not connect to each other"]

    served = World()
    served.run(2)
    served.tell("a", state=WorkerState.FAILED, error="out of memory")
    served.run(4)
    assert served.failures() == ()


def test_facts_that_change_are_told_with_the_next_heartbeat() -> None:
    node = Solo()
    new = NodeFacts(rdma_json='{"ends": []}')
    node.step(ev.FactsChanged(new))
    answer = node.answer("a", beat(1))
    assert isinstance(answer, HeartbeatResponse)
    assert answer.facts == new


def test_reports_of_other_transports_say_nothing_about_it() -> None:
    world = Takeover()
    worker = WorkerReport(PLAN.epoch, 0, WorkerState.FAILED, error="x", transport_failure="y")
    world.run(2)
    world.told["a"] = dataclasses.replace(world.told["a"], worker=worker)
    world.run(4)
    assert world.asked()[-1].transport_failures == ()
