"""Verdicts: flapping nodes, second opinions, doubles, and observers that were away."""

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.errors import LocalClusterSettingsInvalid
from macmesh_daemon.cluster.flaps import FlapRecord, HoldDown
from macmesh_daemon.cluster.messages import (
    Deployment,
    HeartbeatResponse,
    ProbeRequest,
    ProbeResponse,
    RequestVoteRequest,
)
from macmesh_daemon.cluster.quorum import weights
from macmesh_daemon.cluster.settings import ClusterSettings
from macmesh_daemon.cluster.tracker import MemberTrack
from macmesh_daemon.cluster.watch import MemberWatch
from simulator.node import SimNode
from simulator.parts import facts_of, split, wanted_model
from simulator.solo import Solo, beat, document, kinds, only, stored, vote
from simulator.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

M = wanted_model()
SETTINGS = ClusterSettings()


def led(world: World) -> tuple[SimNode, list[str]]:
    leader = world.coordinator()
    assert leader is not None
    return leader, [n for n in world.nodes if n != leader.node_id]


# -- flapping -------------------------------------------------------------------------------------------


def test_a_node_that_returned_three_times_is_left_out_until_its_points_have_faded() -> None:
    flaps = FlapRecord(SETTINGS)
    for at in (0.0, 10.0):
        flaps.returned("b", at)
    assert not flaps.is_suppressed("b", 10.0)
    flaps.returned("b", 12.0)
    flaps.returned("b", 14.0)
    points = flaps.points("b", 14.0)
    assert 3.8 < points < 4.0
    assert flaps.is_suppressed("b", 14.0)
    assert flaps.is_suppressed("b", 14.0 + 595)
    assert not flaps.is_suppressed("b", 14.0 + 605)
    assert not flaps.is_suppressed("b", 14.0 + 606)
    assert not flaps.is_suppressed("c", 0.0)


@given(st.lists(st.floats(0.1, 3000.0), max_size=60))
def test_points_are_bounded_and_so_is_the_time(gaps: list[float]) -> None:
    flaps, now = FlapRecord(SETTINGS), 0.0
    for gap in gaps:
        now += gap
        before = flaps.points("b", now)
        flaps.returned("b", now)
        assert before < flaps.points("b", now) <= 12.0 or before > 11.0
    assert not flaps.is_suppressed("b", now + 1076)


def test_more_flaps_mean_a_longer_time() -> None:
    def out_for(count: int) -> float:
        flaps = FlapRecord(SETTINGS)
        for _ in range(count):
            flaps.returned("b", 0.0)
        return next(float(t) for t in range(2000) if not flaps.is_suppressed("b", float(t)))

    times = [out_for(count) for count in range(2, 13)]
    assert times[0] == 0
    assert times[1:] == sorted(set(times[1:]))


def test_gained_capacity_waits_longer_the_more_often_plans_change() -> None:
    hold = HoldDown(SETTINGS)
    assert hold.is_over(0.0)
    waits = []
    now = 0.0
    for _ in range(7):
        hold.planned(now)
        waits.append(next(s for s in range(100) if hold.is_over(now + s)))
        now += 59.0
    assert waits == [3, 6, 12, 24, 48, 60, 60]
    hold.planned(now + 61)
    assert hold.is_over(now + 61 + 3)


def test_a_flapping_node_is_in_no_plan_after_its_penalty_whatever_else_makes_a_new_one() -> None:
    """One of four nodes is away for 10 seconds in every 60; the planner takes it whenever it may."""
    flapper = ""

    def with_flapper(ask: fx.ComputePlan) -> Deployment:
        names = sorted((m.node_id for m in ask.members), key=lambda name: name != flapper)
        return split(ask.wanted, names[:2])

    world = World(2, 4, compute=with_flapper)
    world.start()
    leader, others = led(world)
    flapper = others[-1]
    world.load(M)
    suppressed_at: float | None = None
    for _ in range(7):
        world.run(30)
        if suppressed_at is None and flapper in leader.up.view.not_planned:
            suppressed_at = world.now
        world.kill_worker(leader)  # whatever the reason of a new plan is
        world.run(20)
        world.crash(flapper)
        world.run(10)
        world.boot(flapper)
    plans = [(at, said.facts["nodes"]) for at, _, said in world.announced if said.event == "plan committed"]
    assert suppressed_at is not None
    before = [nodes for at, nodes in plans if at <= suppressed_at and flapper in nodes]  # type: ignore[operator]
    after = [nodes for at, nodes in plans if at > suppressed_at]
    assert before
    assert after
    assert not [nodes for nodes in after if flapper in nodes]  # type: ignore[operator]
    assert "too often" in leader.up.view.not_planned[flapper]
    other = next(n for n in others if n != flapper)
    world.run(2)
    assert flapper in world.nodes[other].up.view.not_planned, "every node can tell"
    assert leader.up.view.document.member(flapper) is not None  # type: ignore[union-attr]
    world.load(M, leader)
    world.run(1)
    assert not leader.up.view.not_planned, "a person asked anew"


def test_a_restart_counts_though_it_was_too_short_to_be_called_dead() -> None:
    world = World(2, 3)
    world.start()
    leader, others = led(world)
    for _ in range(4):
        world.crash(others[0])
        world.run(0.3)
        world.boot(others[0])
        world.run(2)
    assert others[0] in leader.up.view.not_planned
    assert others[1] not in leader.up.view.not_planned


# -- second opinions ------------------------------------------------------------------------------------


def bridge(world: World, one: str, other: str) -> None:
    world.network.cut = {(one, other), (other, one)}


def test_who_is_cut_from_the_coordinator_only_is_not_dead_and_its_plan_serves_on() -> None:
    world = World(3, 3)
    world.start(M)
    leader, others = led(world)
    document = leader.up.view.document
    assert document is not None
    assert document.plan is not None
    bridge(world, leader.node_id, others[0])
    world.run(20)

    assert leader.up.view.role == "coordinator"
    assert leader.up.view.liveness[others[0]] == "cut"
    assert world.nodes[others[1]].up.view.liveness[others[0]] == "cut"
    after = leader.up.view.document
    assert after is not None
    assert after.plan == document.plan
    assert leader.up.view.serving_state == "ready"
    assert not world.announcements("member dead")
    world.crash(others[0])
    world.run_until(lambda: leader.up.view.liveness[others[0]] == "dead", 5)


def test_who_is_cut_off_is_in_no_new_plan_and_planned_again_when_the_link_is_back() -> None:
    world = World(3, 4)
    world.start()
    leader, others = led(world)
    bridge(world, leader.node_id, others[0])
    world.run(6)
    world.load(M)
    world.run_until(lambda: leader.up.view.serving_state == "ready", 20)
    plan = leader.up.view.document.plan  # type: ignore[union-attr]
    assert plan is not None
    assert set(plan.node_ids) == {leader.node_id, *others[1:]}
    world.network.cut = set()
    world.run_until(lambda: leader.up.view.liveness[others[0]] == "alive", 2)


def test_a_plan_that_cannot_be_brought_up_over_a_cut_link_is_made_anew() -> None:
    world = World(3, 3)
    world.start()
    leader, others = led(world)
    world.load(M)
    world.run_until(lambda: bool(world.announcements("plan committed")), 5)
    bridge(world, leader.node_id, others[0])
    world.run_until(
        lambda: leader.up.view.serving_state == "ready" and len(world.announcements("plan committed")) > 1, 20
    )
    assert others[0] not in leader.up.view.document.plan.node_ids  # type: ignore[union-attr]


def test_only_the_coordinator_sends_a_node_to_look_for_another() -> None:
    node = Solo(stored())
    node.answer("a", beat(1))
    assert node.answer("c", ProbeRequest(1, 1, "b")) == ProbeResponse(1, 1, "b", reached=True)
    assert node.answer("c", ProbeRequest(1, 1, "a")) == ProbeResponse(1, 1, "a", reached=False)
    first = node.ask("a", ProbeRequest(1, 1, "c"))
    (sent,) = only(first, fx.Send)
    assert (sent.peer, sent.message) == ("c", ProbeRequest(1, 1, "c"))
    assert kinds(node.ask("a", ProbeRequest(1, 1, "c"))) == [], "one question serves both"
    replies = only(node.step(ev.ResponseReceived("c", ProbeResponse(1, 1, "c", reached=True), 1.0)), fx.Reply)
    assert [r.message for r in replies] == [ProbeResponse(1, 1, "c", reached=True)] * 2
    node.ask("a", ProbeRequest(1, 1, "c"))
    (reply,) = only(node.step(ev.RequestFailed("c", sent.message, "deadline")), fx.Reply)
    assert reply.message == ProbeResponse(1, 1, "c", reached=False)


def test_a_probe_of_a_node_that_is_evicted_meanwhile_is_answered() -> None:
    node = Solo(stored())
    node.answer("a", beat(1))
    node.ask("a", ProbeRequest(1, 1, "c"))
    denying = dataclasses.replace(document("ab", seq=2), denied_node_ids=("c",))
    node.answer("a", beat(1, denying))
    effects = node.step(ev.ResponseReceived("c", ProbeResponse(1, 1, "c", reached=True), 1.0))

    assert [r.message for r in only(effects, fx.Reply)] == [ProbeResponse(1, 1, "c", reached=False)]


# -- doubles --------------------------------------------------------------------------------------------


def answer(track: MemberTrack, nonce: int, now: float) -> str:
    """Ask the member, have a daemon with this nonce answer, and take the answer in where it counts."""
    response = HeartbeatResponse(round=track.next_round(now), boot_nonce=nonce, accepted=True)
    session = track.identify(response, now + 0.01, SETTINGS)
    if response.boot_nonce == track.session:
        track.on_answer(response, 1.0, now + 0.01)
    return session


def test_a_restart_takes_its_predecessors_place_after_two_answers() -> None:
    track = MemberTrack(since=0.0)
    assert [answer(track, n, at) for at, n in enumerate((1, 1))] == ["same", "same"]
    assert answer(track, 2, 1.25) == "doubted"
    assert answer(track, 2, 1.5) == "restarted"
    assert answer(track, 2, 1.75) == "same"
    assert not track.refused


def test_a_restart_after_silence_is_taken_at_once() -> None:
    track = MemberTrack(since=0.0)
    answer(track, 1, 0.0)
    assert answer(track, 2, 2.0) == "restarted"


@pytest.mark.parametrize(
    "nonces", [(1, 2, 1, 2, 1, 2, 2, 1), (1, 2, 2, 1, 2, 2, 2, 2), (1, 1, 2, 2, 2, 1, 2, 1)]
)
def test_two_daemons_that_both_answer_are_told_apart_and_the_first_stays(nonces: tuple[int, ...]) -> None:
    track = MemberTrack(since=0.0)
    sessions = [answer(track, n, 0.25 * i) for i, n in enumerate(nonces)]

    assert sessions.count("duplicate") == 1
    assert track.session == 1
    assert track.refused == {2}
    assert "restarted" not in sessions[sessions.index("duplicate") :]


def test_the_second_daemon_is_taken_once_the_first_is_gone_for_good() -> None:
    track = MemberTrack(since=0.0)
    for i, n in enumerate((1, 2, 1)):
        answer(track, n, 0.25 * i)
    assert answer(track, 2, 0.75) == "refused"
    assert answer(track, 2, 5.0) == "restarted"
    assert track.refused == set()


def test_late_words_of_the_predecessor_prove_nothing() -> None:
    track = MemberTrack(since=0.0)
    answer(track, 1, 0.0)
    late = track.next_round(0.1)
    answer(track, 2, 0.25)
    answer(track, 2, 0.5)
    assert track.session == 2
    assert track.identify(HeartbeatResponse(round=late, boot_nonce=1), 0.6, SETTINGS) == "refused"
    assert track.identify(HeartbeatResponse(round=99, boot_nonce=2), 0.6, SETTINGS) == "same"
    assert not track.refused


def test_an_answer_to_what_was_asked_before_the_newer_came_proves_nothing() -> None:
    track = MemberTrack(since=0.0)
    answer(track, 1, 0.0)
    before = track.next_round(0.25)
    track.meet(2, 0.3, 0.875)
    assert track.identify(HeartbeatResponse(round=before, boot_nonce=1), 0.35, SETTINGS) == "same"
    after = track.next_round(0.5)
    assert track.identify(HeartbeatResponse(round=after, boot_nonce=1), 0.55, SETTINGS) == "duplicate"


def test_a_clone_that_says_hello_is_refused_and_told_of_and_moves_nothing() -> None:
    world = World(3, 3)
    world.start(M)
    leader, others = led(world)
    target = others[0]
    clone = ev.CandidateVerified(target, ("clone:1",), facts_of(target), 666, "mdns", True)  # noqa: FBT003
    for _ in range(10):
        world.step(leader, clone)
        world.run(0.5)
    view = leader.up.view

    assert view.duplicate_node_ids == (target,)
    assert view.refused_boot_nonces == {target: {666}}
    assert len(world.announcements("duplicate identity")) == 1
    assert view.document is not None
    assert view.document.member(target).addresses == (f"{target}:7000",)  # type: ignore[union-attr]
    assert view.liveness[target] == "alive"
    assert world.nodes[others[1]].up.view.duplicate_node_ids == (target,)
    assert len(world.announcements("plan committed")) == 1


def test_a_real_restart_is_no_double() -> None:
    world = World(3, 3)
    world.start(M)
    leader, others = led(world)
    for gap in (0.0, 0.1, 0.4, 2.0, 6.0):
        world.crash(others[0])
        world.run(gap)
        world.boot(others[0])
        world.run(3)
        assert leader.up.view.liveness[others[0]] == "alive"
    assert not world.announcements("duplicate identity")
    assert len(world.announcements("member restarted")) == 5


def test_a_node_sees_its_own_double() -> None:
    node = Solo(stored())
    hello = ev.CandidateVerified("b", ("b:1",), facts_of("b"), 8, "mdns", True)  # noqa: FBT003
    node.step(hello)
    node.step(hello)
    node.step(dataclasses.replace(hello, boot_nonce=7))

    assert node.machine.view.duplicate_node_ids == ("b",)


# -- sleep and starvation -------------------------------------------------------------------------------


def test_a_coordinator_that_slept_past_its_lease_steps_down_before_anything_else() -> None:
    world = World(1, 3)
    world.start(M)
    leader, _ = led(world)
    effects: list[fx.Effect] = []
    machine = leader.up
    effects = machine.step(ev.LoadWanted(1, wanted_model("k")), world.now + 3600)

    assert [e.reason for e in only(effects, fx.ChangeRejected)] == ["NO_QUORUM"]
    assert machine.view.role == "follower"
    assert not only(effects, fx.Send)
    assert not only(effects, fx.Persist)


@pytest.mark.parametrize("told", [True, False], ids=["told of its sleep", "not told"])
def test_a_member_that_slept_does_not_campaign_at_once(told: bool) -> None:
    node = Solo(stored())
    node.answer("a", beat(1))
    node.now += 3600
    if told:
        node.step(ev.LocalHealth(1, slept=True))
    assert "Send" not in kinds(node.step(ev.Tick()))
    node.now += 0.9
    assert "Send" not in kinds(node.step(ev.Tick()))
    deadline = node.machine.next_deadline()
    assert deadline is not None
    assert deadline - node.now > (3.0 if told else 0.0)
    effects = node.tick()
    assert isinstance(only(effects, fx.Send)[0].message, RequestVoteRequest)


def test_a_member_that_slept_keeps_nobody_from_voting() -> None:
    node = Solo(stored())
    node.answer("a", beat(1))
    node.now += 3600
    granted = node.answer("c", vote(2))

    assert granted.granted  # type: ignore[union-attr]


def test_an_observer_whom_most_do_not_answer_takes_longer_to_call_them_dead() -> None:
    """The tie-breaker of two voters and three without a vote: all three silent at once, and it still leads."""
    other = dataclasses.replace(facts_of("x"), mlx_version="0.0.1")
    world = World(1, 5, facts={n: dataclasses.replace(other, hostname=n) for n in "cde"})
    world.start()
    leader, _ = led(world)
    document = leader.up.view.document
    assert document is not None
    assert set(weights(document)) == {"a", "b"}

    def silent_until_dead(names: str) -> float:
        for name in names:
            world.crash(name, power=True)
        took = world.run_until(lambda: leader.up.view.liveness[names[0]] == "dead", 20)
        for name in names:
            world.boot(name)
        world.run(2)
        return took

    assert silent_until_dead("c") < 3.5
    assert 5.5 < silent_until_dead("cde") < 6.6


@pytest.mark.parametrize(
    ("field", "value"),
    [("flap_reuse_points", 3.0), ("flap_max_points", 2.0), ("standalone_after_seconds", 2.0)],
)
def test_settings_of_the_watch_that_contradict_each_other_are_refused(field: str, value: float) -> None:
    change: Callable[..., ClusterSettings] = dataclasses.replace
    with pytest.raises(LocalClusterSettingsInvalid, match=field):
        change(SETTINGS, **{field: value})


def test_an_answer_to_what_was_asked_before_the_goodbye_does_not_take_it_back() -> None:
    track = MemberTrack(since=0.0)
    before = track.next_round(1.0)
    track.left_at = 1.5
    track.on_answer(HeartbeatResponse(round=before, accepted=True), 1.0, 2.0)
    assert track.left_at == 1.5

    after = track.next_round(2.0)
    track.on_answer(HeartbeatResponse(round=after, accepted=True), 1.0, 2.1)
    assert track.left_at is None


# -- large clusters -------------------------------------------------------------------------------------


def test_a_large_cluster_looks_at_its_news_in_crowds_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    look = MemberWatch.look

    def counted(self: MemberWatch) -> None:
        if len(self.tracks) > 64:
            looks.append(self._context.now)
        look(self)

    monkeypatch.setattr(MemberWatch, "look", counted)
    world = World(1, 80, expect=1, star=True, story_lines=0)
    world.run(3.0)
    leader = world.coordinator()
    assert leader is not None
    assert world.agreed()
    assert 12 <= len(looks) < 130, "and not one for each piece of news, of which there are over a thousand"

    world.run(0.2)
    now = leader.clock.local(world.now)
    world.step(leader, ev.LoadWanted(7, M))
    world.step(leader, ev.LoadWanted(8, M))
    deadline = leader.up.next_deadline()
    assert deadline is not None
    assert deadline - now <= 0.02 + 1e-9
