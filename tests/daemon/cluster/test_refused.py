"""A refused connection is not silence: a killed member is dead within a second, a cut one is not."""

import dataclasses

import pytest

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import HeartbeatRequest, HeartbeatResponse, MemberStatus, ProbeRequest
from macmesh_daemon.cluster.quorum import weights
from macmesh_daemon.cluster.settings import ClusterSettings
from macmesh_daemon.cluster.tracker import MemberTrack, liveness
from simulator.node import SimNode
from simulator.parts import facts_of, wanted_model
from simulator.solo import Solo, beat, only, stored
from simulator.world import World

M = wanted_model()
SETTINGS = ClusterSettings()


def started(count: int = 3, *, model: bool = False, seed: int = 1) -> tuple[World, SimNode, list[str]]:
    """A world that stands, its coordinator and the others."""
    world = World(seed, count)
    world.start(M if model else None)
    world.run(1.0)
    leader = world.coordinator()
    assert leader is not None
    return world, leader, [n for n in world.nodes if n != leader.node_id]


def beats(effects: list[fx.Effect], peer: str) -> list[HeartbeatRequest]:
    return [
        s.message
        for s in only(effects, fx.Send)
        if s.peer == peer and isinstance(s.message, HeartbeatRequest)
    ]


def told(world: World, leader: SimNode, event: ev.Event) -> list[fx.Effect]:
    """Give the leader an event; what it decides, which is done."""
    world.keep_log, world.log = True, []
    world.step(leader, event)
    world.keep_log = False
    return [effect for _, node_id, effect in world.log if node_id == leader.node_id]


def refuse(world: World, leader: SimNode, peer: str) -> list[fx.Effect]:
    """Let the newest heartbeat to a member be refused at this moment, whatever the member itself does."""
    coordinator = leader.up._coordinator
    assert coordinator is not None
    track = coordinator.watch.tracks[peer]
    number = track.next_round(leader.clock.local(world.now))
    request = HeartbeatRequest(*leader.up._context.state.ballot, number)
    return told(world, leader, ev.RequestFailed(peer, request, "refused"))


# -- from the kill to the plan --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_killed_member_is_suspect_at_once_and_dead_within_a_second(count: int) -> None:
    world, leader, others = started(count, model=True)
    begun = world.now
    world.crash(others[0])
    suspect = world.run_until(lambda: leader.up.view.liveness[others[0]] == "suspect", 1)
    world.run_until(lambda: leader.up.view.liveness[others[0]] == "dead", 1)

    assert suspect < 0.05
    assert SETTINGS.refused_dead_seconds <= world.now - begun < 0.9
    world.run_until(lambda: len(world.announcements("plan committed")) == 2, 1)
    assert others[0] not in world.announcements("plan committed")[-1].facts["nodes"]  # type: ignore[operator]
    assert {n for n, v in leader.up.view.liveness.items() if v != "alive"} == {others[0]}


@pytest.mark.parametrize("how", ["power", "cut", "frozen", "asleep"])
def test_mere_silence_takes_its_time(how: str) -> None:
    world, leader, others = started()
    begun = world.now
    match how:
        case "power":
            world.crash(others[0], power=True)
        case "cut":
            world.cut(others[0], leader.node_id + others[1])
        case _:
            world.sleep(others[0], frozen=how == "frozen")
    world.run_until(lambda: leader.up.view.liveness[others[0]] == "suspect", 3)
    assert world.now - begun > 0.5
    world.run_until(lambda: leader.up.view.liveness[others[0]] == "dead", 5)
    assert world.now - begun > 2.7


def test_a_killed_member_keeps_its_vote_as_long_as_a_silent_one() -> None:
    world, leader, others = started(5)
    world.crash(others[0])
    world.run(SETTINGS.voter_hold_down_seconds - 1)
    document = leader.up.view.document
    assert document is not None
    assert others[0] in weights(document)
    assert leader.up.view.liveness[others[0]] == "dead"


# -- stray resets ---------------------------------------------------------------------------------------


def test_a_stray_reset_is_forgotten_with_the_next_answer() -> None:
    world, leader, others = started(model=True)
    effects = refuse(world, leader, others[0])

    assert [a.event for a in only(effects, fx.Announce)] == ["member suspect"]
    assert leader.up.view.liveness[others[0]] == "suspect"
    probes = [s for s in only(effects, fx.Send) if isinstance(s.message, ProbeRequest)]
    assert [(s.peer, s.message) for s in probes] == [
        (others[1], ProbeRequest(*leader.up._context.state.ballot, others[0]))
    ], "others are asked at once"
    world.run_until(lambda: leader.up.view.liveness[others[0]] == "alive", 0.3)
    world.run(20)
    assert len(world.announcements("plan committed")) == 1
    assert leader.up._flaps.points(others[0], world.now) == 0.0


def test_refusals_with_answers_between_them_never_add_up() -> None:
    world, leader, others = started()
    for _ in range(20):
        refuse(world, leader, others[0])
        world.run(0.4)
    assert not world.announcements("member dead")


def test_who_refuses_the_coordinator_only_is_not_dead() -> None:
    """A packet filter that resets what the coordinator sends; the others reach the member."""
    world, leader, others = started()
    victim = others[0]
    world.cut(leader.node_id + others[1], victim + others[1])
    for _ in range(12):
        refuse(world, leader, victim)
        world.run(0.2)
    assert leader.up.view.liveness[victim] == "suspect"
    world.run(3)
    assert leader.up.view.liveness[victim] == "cut"
    assert not world.announcements("member dead")


def test_a_refusal_of_what_was_asked_before_the_last_answer_is_old_news() -> None:
    track = MemberTrack(since=0.0)
    assert not track.on_refused(0.5, 0.6), "it never answered: its daemon may be about to start"
    first, second = track.next_round(1.0), track.next_round(1.1)
    track.on_answer(HeartbeatResponse(round=second, accepted=True), 1.0, 1.2)
    sent_at = track.forget_round(first)
    assert sent_at == 1.0
    assert not track.on_refused(sent_at, 1.3)
    assert track.refused_since is None
    assert track.on_refused(1.5, 1.5)
    assert not track.on_refused(1.9, 1.9)


def verdict(track: MemberTrack, now: float, *, health_score: int = 0) -> str:
    own = facts_of("a")
    return liveness(track, own, own, now=now, health_score=health_score, settings=SETTINGS)


def test_the_last_attempt_must_have_begun_long_enough_after_the_first_refusal() -> None:
    track = MemberTrack(since=0.0)
    track.on_answer(HeartbeatResponse(round=track.next_round(1.0), accepted=True), 1.0, 1.0)
    track.on_refused(1.1, 1.2)
    assert verdict(track, 1.2) == "suspect"
    track.on_refused(1.69, 1.75)
    assert verdict(track, 1.8) == "suspect", "begun 0.49 s after the first refusal"
    track.on_refused(1.71, 1.75)
    assert verdict(track, 1.8) == "dead"
    assert verdict(track, 1.8, health_score=1) == "suspect"
    track.excuse(10.0)
    assert verdict(track, 11.8) == "dead"
    track.reached_at = 11.75
    assert verdict(track, 11.8) == "suspect"


# -- observers that doubt themselves ---------------------------------------------------------------------


def dead_after(world: World, leader: SimNode, names: list[str]) -> float:
    for name in names:
        world.crash(name)
    return world.run_until(lambda: leader.up.view.liveness[names[0]] == "dead", 10)


def test_an_observer_that_fares_badly_waits_longer_for_the_next_refusal() -> None:
    world, leader, others = started()
    world.step(leader, ev.LocalHealth(1))
    assert 1.0 <= dead_after(world, leader, others[:1]) < 1.4


def test_an_observer_whom_most_refuse_together_doubts_itself() -> None:
    """The tie-breaker of two voters and three without a vote: it leads on when those three are gone."""
    other = {n: dataclasses.replace(facts_of(n), mlx_version="0.0.1") for n in "cde"}
    world = World(1, 5, facts=other)
    world.start()
    world.run(1.0)
    leader = world.coordinator()
    assert leader is not None
    assert 1.0 <= dead_after(world, leader, ["c", "d", "e"]) < 1.4


def test_an_observer_on_whom_most_time_out_doubts_itself_until_they_do_not() -> None:
    """Its link loses much, but everybody gets an answer through now and then."""
    world, leader, others = started(4)
    coordinator = leader.up._coordinator
    assert coordinator is not None
    watch = coordinator.watch

    def time_out(names: list[str]) -> None:
        for name in names:
            number = watch.tracks[name].next_round(leader.clock.local(world.now))
            request = HeartbeatRequest(*leader.up._context.state.ballot, number)
            world.step(leader, ev.RequestFailed(name, request, "deadline"))

    assert not watch._is_everybody_silent()
    time_out(others[:1])
    assert not watch._is_everybody_silent()
    time_out(others[1:2])
    assert watch._is_everybody_silent()
    assert all(verdict == "alive" for verdict in leader.up.view.liveness.values())
    world.run(1.0)
    assert not watch._is_everybody_silent()
    world.crash(others[0], power=True)
    for _ in range(16):
        time_out(others)
        world.run(0.25)
    assert leader.up.view.liveness[others[0]] == "suspect", "silent for 4 s"
    world.run_until(lambda: leader.up.view.liveness[others[0]] == "dead", 1.0)


def test_a_death_is_not_taken_back_because_the_observer_fares_badly_now() -> None:
    world, leader, others = started()
    dead_after(world, leader, others[:1])
    world.step(leader, ev.LocalHealth(3))
    world.run(0.3)
    assert leader.up.view.liveness[others[0]] == "dead"


# -- successors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("also", [0, 1])
def test_a_killed_coordinator_costs_an_election_and_no_more_than_a_member(also: int) -> None:
    world, leader, others = started(5, model=True)
    victims = [leader.node_id, *others[:also]]
    for victim in victims:
        world.crash(victim)
    world.run_until(lambda: world.coordinator() is not None, 5)
    successor = world.coordinator()
    assert successor is not None
    took = world.run_until(lambda: all(successor.up.view.liveness[v] == "dead" for v in victims), 3)

    assert SETTINGS.refused_dead_seconds <= took < 0.9
    world.run_until(lambda: len(world.announcements("plan committed")) == 2, 1)
    assert not {*victims} & {*world.announcements("plan committed")[-1].facts["nodes"]}  # type: ignore[misc]
    assert {n for n, v in successor.up.view.liveness.items() if v != "alive"} == {*victims}


def test_a_successor_waits_for_who_was_not_seen_by_the_coordinator_before() -> None:
    """All machines were started anew, and one of their daemons is late."""
    world, _, _ = started(3)
    for name in world.nodes:
        world.crash(name)
    for name in "bc":
        world.boot(name)
    world.run_until(lambda: world.coordinator() is not None, 5)
    successor = world.coordinator()
    assert successor is not None
    world.run(2.5)
    assert successor.up.view.liveness["a"] == "unknown"
    world.run_until(lambda: successor.up.view.liveness["a"] == "dead", 1)


def test_who_was_there_is_what_the_coordinator_told_and_old_news_soon() -> None:
    node = Solo(stored("abcdef"))
    assert node.machine._replica.were_there() == {}
    verdicts = {"a": "alive", "b": "alive", "c": "suspect", "d": "dead", "e": "cut", "f": "unknown"}
    members = tuple(MemberStatus(name, verdict) for name, verdict in verdicts.items())
    node.answer("a", dataclasses.replace(beat(), members=members))
    assert node.machine._replica.were_there() == dict.fromkeys("abc", node.now)
    heard_at = node.now
    node.answer("a", beat(), after=0.5)
    assert node.machine._replica.were_there() == dict.fromkeys("abc", heard_at + 0.5)
    node.step(ev.Tick(), after=SETTINGS.dead_after_seconds - 0.1)
    assert node.machine._replica.were_there()
    node.step(ev.Tick(), after=0.1)
    assert node.machine._replica.were_there() == {}


@pytest.mark.parametrize("seed", range(6))
def test_who_refuses_the_successor_only_is_not_dead(seed: int) -> None:
    """The others are asked, also where none of them has answered the successor yet when it is refused."""
    world, leader, _ = started(4, seed=seed)
    former = leader.node_id
    world.give(leader, ev.HandOverWanted())
    world.run_until(lambda: bool(world.announcements("leadership offered")), 3)
    heir = next(n for _, n, said in world.announced if said.event == "leadership offered")
    world.network.rejected.add((heir, former))
    world.run_until(lambda: world.coordinator() is world.nodes[heir], 1)
    world.run_until(lambda: world.nodes[heir].up.view.liveness[former] == "suspect", 0.1)
    world.run(2.5)
    assert world.nodes[heir].up.view.liveness[former] == "suspect"
    world.run_until(lambda: world.nodes[heir].up.view.liveness[former] == "cut", 2)
    assert not world.announcements("member dead")


# -- lost connections ------------------------------------------------------------------------------------


def test_a_lost_connection_is_asked_about_at_once_but_not_again_and_again() -> None:
    world, leader, others = started()
    due = leader.up.next_deadline()
    assert due is not None
    world.run(due - leader.clock.local(world.now) + 0.001)
    now = leader.clock.local(world.now)
    first = leader.up.step(ev.ConnectionLost(others[0]), now)
    (request,) = beats(first, others[0])
    assert request.document is None
    assert not beats(first, others[1])
    again = leader.up.step(ev.RequestFailed(others[0], request, "lost"), now + 0.01)
    assert not beats(again, others[0])
    (request,) = beats(leader.up.step(ev.ConnectionLost(others[0]), now + 0.06), others[0])
    later = leader.up.step(ev.RequestFailed(others[0], request, "lost"), now + 0.12)
    assert beats(later, others[0])
    assert leader.up.view.liveness[others[0]] == "alive", "a lost connection alone says nothing"
    assert not only(leader.up.step(ev.ConnectionLost("stranger"), now + 0.13), fx.Send)


def test_who_is_silent_for_long_is_not_hurried() -> None:
    world, leader, others = started()
    world.sleep(others[0])
    world.run(2)
    assert world.coordinator() is leader
    assert not beats(told(world, leader, ev.ConnectionLost(others[0])), others[0])


def test_only_a_coordinator_asks() -> None:
    node = Solo(stored())
    node.answer("a", beat(1))
    assert not node.step(ev.ConnectionLost("a"))
    assert not node.step(ev.ConnectionLost("c"))
