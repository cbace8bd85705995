"""Nodes that are evicted, and nodes that go in order."""

import dataclasses
import itertools

import pytest

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import (
    ClusterDocument,
    CommitRequest,
    Epoch,
    HeartbeatRequest,
    HeartbeatResponse,
    LeaveRequest,
    LeaveResponse,
    Plan,
    PrepareRequest,
    ProbeRequest,
    Request,
    RequestVoteRequest,
    RequestVoteResponse,
    SetPeersRequest,
    TransferLeadershipRequest,
    TransferLeadershipResponse,
)
from macmesh_daemon.cluster.quorum import is_quorum, weights
from simulator.node import SimNode
from simulator.parts import split, wanted_model
from simulator.solo import Solo, beat, document, kinds, only, stored, vote
from simulator.world import World

M = wanted_model()


def led(world: World) -> ClusterDocument:
    leader = world.coordinator()
    assert leader is not None
    found = leader.up.view.document
    assert found is not None
    return found


def evict(world: World, node_id: str, change_id: int = 99) -> None:
    leader = world.coordinator()
    assert leader is not None
    world.step(leader, ev.EvictWanted(change_id, node_id))


def is_out(world: World, node_id: str) -> bool:
    leader = world.coordinator()
    if leader is None or leader.up.view.document is None:
        return False
    found = leader.up.view.document
    return node_id in found.denied_node_ids and found.member(node_id) is None


def is_out_of(leader: SimNode, node_id: str) -> bool:
    document = leader.up.view.document
    return document is not None and node_id in document.denied_node_ids


def outcomes(world: World, node_id: str, change_id: int = 99) -> list[str]:
    return [type(o).__name__ for o in world.nodes[node_id].outcomes if o.change_id == change_id]


def names_of(count: int, *, leader: bool) -> tuple[World, str, str]:
    """A serving cluster, its coordinator, and whom to evict."""
    world = World(11, count)
    world.start(M)
    first = world.coordinator()
    assert first is not None
    other = next(n for n in reversed(world.nodes) if n != first.node_id)
    return world, first.node_id, first.node_id if leader else other


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_an_evicted_member_leaves_plan_voters_and_members_and_knows(count: int) -> None:
    world, leader, target = names_of(count, leader=False)
    evict(world, target)
    world.run_until(lambda: is_out(world, target), 5)
    world.run(2)

    assert not world.announcements("plan ended for an eviction"), "there was one without it"
    assert outcomes(world, leader) == ["ChangeAccepted", "ChangeDone"]
    assert led(world).plan is not None
    assert set(led(world).plan.node_ids) == set(world.nodes) - {target}  # type: ignore[union-attr]
    assert sum(weights(led(world)).values()) % 2 == 1
    evicted = world.nodes[target]
    assert evicted.up.view.is_evicted
    assert evicted.worker is None
    world.run(5)
    assert evicted.up.view.role == "follower"
    world.crash(target)
    world.boot(target)
    world.run(5)
    assert is_out(world, target), "it is not let in again"


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_coordinator_that_is_evicted_hands_over_first(count: int) -> None:
    world, leader, _ = names_of(count, leader=True)
    evict(world, leader)
    world.run_until(lambda: is_out(world, leader), 20)
    world.run(2)
    after = world.coordinator()

    assert after is not None
    assert after.node_id != leader
    assert outcomes(world, leader) == ["ChangeAccepted", "ChangeRejected"]
    assert world.announcements("leadership handed over")
    assert leader not in weights(led(world))
    world.run_until(lambda: after.up.view.serving_state == "ready", 10)


def test_a_coordinator_alone_cannot_be_evicted() -> None:
    world = World(1, 2)
    world.start()
    world.crash("b")
    world.run(4)
    evict(world, "a")

    assert outcomes(world, "a") == ["ChangeRejected"]
    assert not is_out(world, "a")


def test_the_only_heir_of_a_coordinator_that_is_to_go_stays() -> None:
    """Else the last node would be marked for ever, and no plan could have it."""
    world = World(1, 2)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    (other,) = (name for name in world.nodes if name != leader.node_id)
    world.run(3)
    world.network.cut_between(leader.node_id, other)
    evict(world, leader.node_id, 1)
    evict(world, other, 2)

    assert outcomes(world, leader.node_id, 2) == ["ChangeRejected"]
    world.network.cut.clear()
    world.run_until(lambda: is_out(world, leader.node_id), 20)
    world.crash(leader)
    assert led(world).member(other) is not None


def test_two_operators_part_a_cluster_and_neither_side_takes_the_other_in() -> None:
    """One evicts a node, the other forces a recovery on it before it has heard of that."""
    world = World(1, 3)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    lost = next(name for name in world.nodes if name != leader.node_id)
    for name in world.nodes:
        if name != lost:
            world.network.cut_between(name, lost)
    evict(world, lost)
    world.run_until(lambda: is_out_of(leader, lost), 20)
    world.run(10)
    world.recover(lost)
    world.run(1)
    world.network.cut.clear()
    world.introduce_all()
    world.run(20)

    assert leader.up.view.role == "coordinator"
    assert is_out_of(leader, lost)
    view = world.nodes[lost].up.view
    assert view.role == "coordinator"
    assert view.generation > leader.up.view.generation
    others = [n.up.view.coordinator_node_id for name, n in world.nodes.items() if name != lost]
    assert others == [leader.node_id] * 2


def test_the_last_other_voter_goes_though_a_third_is_dead() -> None:
    """Of voters a, b and dead c, taking b's vote at once would leave a and c, of which a is no quorum."""
    world, leader, _ = names_of(3, leader=False)
    dead, target = (n for n in world.nodes if n != leader)
    world.crash(dead)
    world.run(5)
    evict(world, target)
    world.run_until(lambda: is_out(world, target), 20)

    assert weights(led(world))[leader] == 2
    assert world.nodes[leader].up.view.role == "coordinator"


def test_the_tie_breaker_hands_on_its_vote_before_it_goes() -> None:
    world = World(11, 4)
    world.start(M)
    policy = led(world).policy
    assert policy is not None
    holder = policy.tie_breaker_node_id
    evict(world, holder)
    world.run_until(lambda: is_out(world, holder), 20)
    world.run(1)
    policy = led(world).policy
    assert policy is not None
    assert policy.tie_breaker_node_id != holder
    assert_one_unit_a_version(world)


def assert_one_unit_a_version(world: World) -> None:
    versions = [d for _, d in sorted(world.checker.committed.items())]
    for one, two in itertools.pairwise(versions):
        if two.seq != (one.seq + 1 if one.term == two.term else 1):
            continue  # where one vote is a quorum, several versions are committed in one step
        before, after = weights(one), weights(two)
        assert sum(abs(before.get(n, 0) - after.get(n, 0)) for n in {*before, *after}) <= 1


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("which", ["tie-breaker", "coordinator", "other"])
def test_where_no_plan_holds_it_back_the_vote_still_goes_before_the_member(count: int, which: str) -> None:
    world = World(11, count)
    world.start()
    world.run(1)
    leader = world.coordinator()
    assert leader is not None
    policy = led(world).policy
    assert policy is not None
    other = next(n for n in reversed(world.nodes) if n not in {leader.node_id, policy.tie_breaker_node_id})
    of = {"tie-breaker": policy.tie_breaker_node_id, "coordinator": leader.node_id, "other": other}
    evict(world, of[which])
    world.run_until(lambda: is_out(world, of[which]), 10)
    world.run(1)
    assert_one_unit_a_version(world)


def test_a_dead_member_and_a_stranger_can_be_evicted() -> None:
    world, leader, target = names_of(3, leader=False)
    world.crash(target)
    world.run(5)
    evict(world, target)
    evict(world, "stranger", 98)
    world.run_until(lambda: is_out(world, target) and is_out(world, "stranger"), 10)
    assert outcomes(world, leader, 98)[-1] == "ChangeDone"
    world.boot(target)
    world.run(5)
    assert is_out(world, target)
    answered = world.nodes[target].up.view
    assert answered.role != "coordinator"


def test_where_no_plan_can_do_without_the_evicted_node_the_plan_ends() -> None:
    world = World(
        11,
        2,
        compute=lambda ask: (
            split(ask.wanted, [m.node_id for m in ask.members]) if len(ask.members) > 1 else None
        ),
    )
    world.start(M)
    evict(world, "b")
    world.run_until(lambda: is_out(world, "b"), 20)
    world.run(1)

    assert world.nodes["b"].worker is None
    assert led(world).plan is not None
    assert led(world).plan.node_ids == ()  # type: ignore[union-attr]
    assert led(world).wanted == M


def test_an_eviction_outlives_its_coordinator() -> None:
    world, leader, target = names_of(5, leader=False)
    evict(world, target)
    world.run_until(lambda: any(m.evicting for m in led(world).members), 5)
    world.crash(leader)
    world.run_until(lambda: is_out(world, target), 20)


def test_without_quorum_nobody_is_evicted() -> None:
    node = Solo(stored())
    (rejected,) = only(node.step(ev.EvictWanted(1, "c")), fx.ChangeRejected)

    assert rejected.reason == "NO_QUORUM"


REQUESTS: list[Request] = [
    vote(9),
    vote(9, pre_vote=True),
    beat(9),
    PrepareRequest(9, Plan(Epoch(1, 9, 1)), 1),
    CommitRequest(9, Epoch(1, 9, 1), 1),
    SetPeersRequest(9, Epoch(1, 9, 1), (), bytes(32), 1),
    ProbeRequest(1, 9, "b"),
    LeaveRequest(1, 9, ""),
    TransferLeadershipRequest(1, 9),
]


@pytest.mark.parametrize(
    "request_", REQUESTS, ids=[f"{i} {type(r).__name__}" for i, r in enumerate(REQUESTS)]
)
@pytest.mark.parametrize("sender", ["x", "b"])
def test_who_is_denied_or_claims_to_be_this_node_is_told_nothing(request_: Request, sender: str) -> None:
    denying = dataclasses.replace(document("abc", term=4), denied_node_ids=("x",))
    node = Solo(dataclasses.replace(stored(term=4), document=denying))
    before = node.state
    effects = node.ask(sender, request_, after=9)
    (reply,) = only(effects, fx.Reply)
    told = {
        field.name: getattr(reply.message, field.name)
        for field in dataclasses.fields(reply.message)
        if field.name not in {"reason", "epoch", "round", "pre_vote", "target_node_id"}
    }

    assert not any(told.values()), told
    assert node.state.ballot == before.ballot
    assert node.state.promised is None
    assert node.machine.view.coordinator_node_id == ""


def test_the_answers_of_a_denied_node_count_for_nothing() -> None:
    denying = dataclasses.replace(document("abc", term=4), denied_node_ids=("x",))
    node = Solo(dataclasses.replace(stored(term=4), document=denying))
    node.step(ev.ResponseReceived("x", RequestVoteResponse(generation=1, term=99), 1.0))

    assert node.state.term == 4


# -- handing over ---------------------------------------------------------------------------------------


def test_a_voter_that_is_asked_to_take_over_campaigns_at_once_and_stickiness_does_not_stop_it() -> None:
    heir = Solo(stored())
    heir.answer("a", beat(1))
    effects = heir.ask("a", TransferLeadershipRequest(1, 1))
    asked = [s.message for s in only(effects, fx.Send)]

    assert [m for m in asked if isinstance(m, RequestVoteRequest)] == asked
    assert all(m.term == 2 and m.transfer and not m.pre_vote for m in asked)  # type: ignore[union-attr]
    assert (heir.state.term, heir.state.voted_for) == (2, "b")
    voter = Solo(stored(), node_id="c")
    voter.answer("a", beat(1))
    answer = voter.answer("b", asked[0])
    assert isinstance(answer, RequestVoteResponse)
    assert answer.granted
    assert voter.state.voted_for == "b"


@pytest.mark.parametrize(
    ("sender", "term"), [("c", 1), ("a", 0)], ids=["not the coordinator", "of a term that is over"]
)
def test_only_the_coordinator_of_the_term_hands_over(sender: str, term: int) -> None:
    node = Solo(stored())
    node.answer("a", beat(1))
    answer = node.answer(sender, TransferLeadershipRequest(1, term))

    assert isinstance(answer, TransferLeadershipResponse)
    assert not answer.accepted
    assert node.state.term == 1


def test_a_wish_that_comes_while_the_office_is_handed_over_does_not_hold_it_up() -> None:
    """The heir needs the votes of the others, and so a version that is as new as theirs."""
    world, leader, _ = names_of(3, leader=True)
    evict(world, leader)
    world.run_until(lambda: bool(world.announcements("leadership handed over")), 2)
    world.load(wanted_model("k"), leader)
    took = world.run_until(lambda: "ChangeRejected" in outcomes(world, leader), 5)

    assert took < 0.3
    assert world.run_until(lambda: world.coordinator() is not None, 5) < 0.3


def test_who_leaves_does_not_campaign() -> None:
    node = Solo(stored())
    node.step(ev.LeaveWanted("sleep"))
    assert not [s for _ in range(6) for s in only(node.tick(), fx.Send)]
    node.step(ev.LeaveCancelled())
    assert [s for _ in range(3) for s in only(node.tick(), fx.Send)]


# -- leaving --------------------------------------------------------------------------------------------


def test_a_member_that_leaves_is_planned_around_at_once_and_stays_a_member() -> None:
    world, _, target = names_of(4, leader=False)
    begun = world.now
    world.step(world.nodes[target], ev.LeaveWanted("shutdown"))
    world.run_until(lambda: world.nodes[target].has_left, 1)
    world.run_until(lambda: target not in led(world).plan.node_ids, 2)  # type: ignore[union-attr]
    assert world.now - begun < 1.0
    leader = world.coordinator()
    assert leader is not None
    assert leader.up.view.liveness[target] == "left"
    assert led(world).member(target) is not None
    world.crash(target)
    world.boot(target)
    world.run_until(lambda: leader.up.view.liveness[target] == "alive", 5)


def test_a_coordinator_that_leaves_hands_over_and_the_next_knows() -> None:
    world, leader, _ = names_of(3, leader=True)
    begun = world.now
    world.step(world.nodes[leader], ev.LeaveWanted("sleep"))
    world.run_until(lambda: world.nodes[leader].has_left, 2)
    after = world.coordinator()
    assert after is not None
    assert after.node_id != leader
    assert world.now - begun < 0.5, "an election by silence takes longer"
    assert after.up.view.liveness[leader] == "left"
    world.run_until(lambda: leader not in led(world).plan.node_ids, 2)  # type: ignore[union-attr]
    world.run(5)
    assert world.nodes[leader].up.view.role == "follower", "who leaves does not campaign"
    world.step(world.nodes[leader], ev.LeaveCancelled())
    world.run_until(lambda: after.up.view.liveness[leader] == "alive", 1)


def test_of_two_nodes_either_may_leave_in_order_and_the_other_goes_on() -> None:
    for target in "ab":
        world = World(11, 2)
        world.start(M)
        other = "b" if target == "a" else "a"
        world.step(world.nodes[target], ev.LeaveWanted("shutdown"))
        took = world.run_until(lambda: world.nodes[target].has_left, 2.9)  # noqa: B023  used at once
        assert took < 0.5
        world.crash(target)
        world.run(10)
        assert world.nodes[other].up.view.role == "coordinator"
        assert weights(led(world)) == {other: 2, target: 1}
        assert led(world).plan.node_ids == (other,)  # type: ignore[union-attr]
        world.boot(target)
        world.run_until(world.agreed, 5)


def test_a_goodbye_taken_back_is_answered_although_no_quorum_is_left_without_that_member() -> None:
    world = World(1, 3)
    world.start(M)
    world.crash("b")
    world.run(8)
    leader = world.nodes["a"]
    assert world.coordinator() is leader
    world.step(world.nodes["c"], ev.LeaveWanted("sleep"))
    world.run_until(lambda: bool(leader.open_requests), 1)
    assert leader.up.view.liveness["c"] == "left"
    world.step(world.nodes["c"], ev.LeaveCancelled())
    world.run_until(lambda: not leader.open_requests and leader.up.view.liveness["c"] == "alive", 1)
    assert world.coordinator() is leader


def test_who_leaves_promises_nothing_and_does_not_wait_for_ever() -> None:
    node = Solo(stored())
    assert "LeaveFinished" not in kinds(node.step(ev.LeaveWanted("shutdown")))
    plan = Plan(Epoch(1, 1, 1), (split(M, ["b"]),), M)
    assert "CheckPrepare" not in kinds(node.ask("a", PrepareRequest(1, plan, 1)))
    finished = [kinds(node.tick()) for _ in range(4)]
    assert sum(found.count("LeaveFinished") for found in finished) == 1
    assert Solo(node_id="a", founder=True).step(ev.LeaveWanted("x")), "a node alone has nobody to tell"


def test_a_goodbye_ends_when_it_is_heard() -> None:
    node = Solo(stored())
    node.answer("a", beat(1))
    (said,) = only(node.step(ev.LeaveWanted("sleep")), fx.Send)
    assert said.message == LeaveRequest(1, 1, "sleep")
    assert kinds(node.step(ev.ResponseReceived("a", LeaveResponse(1, 1), 1.0))) == []
    assert kinds(node.step(ev.ResponseReceived("a", LeaveResponse(1, 1, heard=True), 1.0))) == [
        "LeaveFinished"
    ]
    answer = node.answer("a", HeartbeatRequest(1, 1, 2))
    assert isinstance(answer, HeartbeatResponse)
    assert answer.leaving


def test_a_dead_voter_is_replaced_only_after_the_hold_down() -> None:
    world = World(11, 8)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    spare = next(n for n in world.nodes if n not in weights(led(world)))
    dead = next(n for n in weights(led(world)) if n != leader.node_id)
    world.crash(dead)
    world.run(world.settings.voter_hold_down_seconds - 5)
    assert dead in weights(led(world))
    world.run(15)
    assert dead not in weights(led(world))
    assert spare in weights(led(world))
    assert is_quorum(led(world), {n for n in world.nodes if n != dead})


def test_the_office_goes_to_a_voter_that_holds_the_newest_document() -> None:
    node = Solo(stored("abc"))
    node.tick()
    for pre_vote in (True, False):
        node.step(ev.ResponseReceived("a", RequestVoteResponse(pre_vote, True, 1, 2), 1.0))  # noqa: FBT003
    beats = {s.peer: s.message for s in only(node.tick(), fx.Send) if isinstance(s.message, HeartbeatRequest)}
    newest = node.state.document_version
    for peer, version in (("a", (1, 1, 1)), ("c", newest)):
        answer = HeartbeatResponse(1, 2, beats[peer].round, *version, accepted=True)
        node.step(ev.ResponseReceived(peer, answer, 1.0))
    assert node.machine.view.document == node.state.document

    calls = only(node.step(ev.LeaveWanted("goes down")), fx.Send)
    offered = [call.peer for call in calls if isinstance(call.message, TransferLeadershipRequest)]
    assert offered == ["c"]
