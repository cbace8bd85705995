"""A coordinator that takes over a plan whose members cannot all go on with it."""

import dataclasses

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import (
    CommitRequest,
    CommitResponse,
    Epoch,
    HeartbeatRequest,
    HeartbeatResponse,
    Plan,
    ProbeRequest,
    ProbeResponse,
    RequestVoteRequest,
    RequestVoteResponse,
    WorkerReport,
    WorkerState,
)
from macmesh_daemon.cluster.settings import ClusterSettings
from macmesh_daemon.cluster.state import PersistentState
from simulator.parts import facts_of, split, wanted_model
from simulator.solo import Solo, document, only

WANTED = wanted_model()
PLAN = Plan(Epoch(1, 1, 1), (split(WANTED, ["a", "c"]),), WANTED)


class Takeover:
    """Node b, which leads a and c; both answer at once, as told."""

    def __init__(self) -> None:
        doc = dataclasses.replace(document(), plan=PLAN, wanted=WANTED)
        self.node = Solo(
            PersistentState(generation=1, term=1, document=doc),
            settings=ClusterSettings(rebalance="never"),
        )
        self.told = {
            name: HeartbeatResponse(
                1,
                2,
                promised=PLAN.epoch,
                active=PLAN.epoch,
                worker=WorkerReport(PLAN.epoch, i, WorkerState.READY),
                accepted=True,
                facts=facts_of(name),
            )
            for i, name in enumerate("ac")
        }
        self.log: list[fx.Effect] = []

    def run(self, seconds: float) -> None:
        end = self.node.now + seconds
        while self.node.now < end:
            self._do(self.node.tick())

    def asked(self) -> list[fx.ComputePlan]:
        return only(self.log, fx.ComputePlan)

    def _do(self, effects: list[fx.Effect]) -> None:
        self.log += effects
        for call in only(effects, fx.Send):
            match call.message:
                case RequestVoteRequest() as ask:
                    response = RequestVoteResponse(ask.pre_vote, True, ask.generation, ask.term)  # noqa: FBT003
                    self._do(self.node.step(ev.ResponseReceived(call.peer, response, 1.0)))
                case HeartbeatRequest() as beat:
                    version = self.node.state.document_version
                    answer = dataclasses.replace(
                        self.told[call.peer],
                        round=beat.round,
                        document_generation=version[0],
                        document_term=version[1],
                        document_seq=version[2],
                    )
                    self._do(self.node.step(ev.ResponseReceived(call.peer, answer, 1.0)))
                case CommitRequest() as commit:
                    refused = CommitResponse(commit.epoch, False, "busy", 2, 1)  # noqa: FBT003
                    self._do(self.node.step(ev.ResponseReceived(call.peer, refused, 1.0)))
                case ProbeRequest() as probe:
                    unseen = ProbeResponse(probe.generation, probe.term, probe.target_node_id)
                    self._do(self.node.step(ev.ResponseReceived(call.peer, unseen, 1.0)))
                case _:
                    raise AssertionError(f"unexpected {call}")


def test_a_plan_that_serves_is_left_alone() -> None:
    world = Takeover()
    world.run(60)

    assert world.asked() == []
    assert world.node.machine.view.serving_state == "ready"
    assert world.node.state.document is not None
    assert world.node.state.document.plan == PLAN


def test_a_plan_goes_on_where_a_newer_epoch_was_promised_but_never_committed() -> None:
    world = Takeover()
    world.told["a"] = dataclasses.replace(world.told["a"], promised=Epoch(1, 1, 2))
    world.run(20)

    assert world.asked() == []


def test_a_member_that_promised_beyond_a_plan_it_never_began_needs_a_new_plan_at_once() -> None:
    world = Takeover()
    world.told["a"] = dataclasses.replace(world.told["a"], promised=Epoch(1, 1, 2), active=None, worker=None)
    world.run(3)

    assert len(world.asked()) == 1
    assert {m.node_id for m in world.asked()[0].members} == {"a", "b", "c"}


def test_a_member_that_will_not_commit_is_planned_without() -> None:
    world = Takeover()
    world.told["a"] = dataclasses.replace(world.told["a"], active=None, worker=None)
    world.run(9)
    assert world.asked() == []
    assert len([e for e in only(world.log, fx.Send) if isinstance(e.message, CommitRequest)]) > 5, (
        "it is asked again"
    )
    world.run(5)

    assert {m.node_id for m in world.asked()[0].members} == {"b", "c"}
