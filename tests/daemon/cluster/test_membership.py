"""Founding, admission, voters, verdicts and failover in a simulated cluster."""

import dataclasses
import itertools
import statistics

import pytest

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.admission import JoinBatch
from macmesh_daemon.cluster.errors import LocalClusterMisuse, LocalClusterSettingsInvalid
from macmesh_daemon.cluster.messages import ClusterDocument, RequestVoteRequest
from macmesh_daemon.cluster.quorum import weights
from macmesh_daemon.cluster.settings import ClusterSettings
from simulator.parts import facts_of, wanted_model
from simulator.solo import Solo, kinds, only
from simulator.world import World

M = wanted_model()


def hello(
    node_id: str, *, has_cluster: bool = False, address: str = "", nonce: int = 1
) -> ev.CandidateVerified:
    where = (address or f"{node_id}:7000",)
    return ev.CandidateVerified(node_id, where, facts_of(node_id), nonce, "mdns", has_cluster)


def committed(world: World) -> ClusterDocument:
    leader = world.coordinator()
    assert leader is not None
    document = leader.up.view.document
    assert document is not None
    return document


def test_the_founder_waits_for_the_expected_nodes_then_asks_them_for_votes() -> None:
    node = Solo(node_id="a", founder=True, expect=3)
    assert kinds(node.step(hello("b"))) == []
    assert node.machine.next_deadline() is None
    effects = node.step(hello("c"))

    assert kinds(effects) == ["Persist", "Send", "Send"]
    document = only(effects, fx.Persist)[0].state.document
    assert document is not None
    assert [(m.node_id, m.voter) for m in document.members] == [("a", True), ("b", True), ("c", True)]
    assert [m.discovery for m in document.members] == ["self", "mdns", "mdns"]
    request = only(effects, fx.Send)[0].message
    assert isinstance(request, RequestVoteRequest)
    assert request.pre_vote


def test_a_founder_alone_leads_a_cluster_of_one_at_once() -> None:
    node = Solo(node_id="a", founder=True)
    assert node.machine.next_deadline() == node.now
    node.tick()

    view = node.machine.view
    assert view.role == "coordinator"
    assert view.document is not None
    assert view.document.version == (1, 1, 1)
    assert node.state.document == view.document


def test_a_founder_that_meets_a_cluster_waits_to_be_admitted() -> None:
    node = Solo(node_id="a", founder=True, expect=2)
    node.step(hello("b", has_cluster=True))

    assert node.machine.next_deadline() is None
    assert node.state.document is None


def test_who_is_no_founder_founds_nothing() -> None:
    node = Solo(node_id="a", expect=1)
    node.step(hello("b"))

    assert node.state.document is None


def test_without_a_plan_joiners_are_admitted_at_once() -> None:
    world = World(1, 5, expect=1)
    took = world.run_until(world.agreed, 5)

    assert took < 1.0
    assert len(weights(committed(world))) == 5


def test_while_a_plan_runs_joiners_are_batched() -> None:
    world = World(1, 5, expect=3, down="de")
    world.run_until(lambda: world.coordinator() is not None, 5)
    known = set("abc")
    world.load(M)
    world.run(10)
    leader = world.coordinator()
    assert leader is not None
    world.step(leader, hello("d"))
    world.run(2)
    world.step(leader, hello("e"))
    world.run(2.5)
    assert {m.node_id for m in committed(world).members} == known
    world.run(1)

    assert {m.node_id for m in committed(world).members} == {*known, "d", "e"}


def test_joiners_that_keep_coming_do_not_keep_the_first_waiting_for_ever() -> None:
    batch = JoinBatch(ClusterSettings())
    arrivals = [f"n{i}" for i in range(20)]
    admitted_at = next(
        at for at in range(40) if batch.ready(arrivals[: at // 2 + 1], float(at), plan_runs=True)
    )

    assert admitted_at == 15


def test_no_version_moves_the_votes_by_more_than_one() -> None:
    world = World(2, 9, expect=2)
    world.run_until(world.agreed, 10)
    world.run(3)
    votes = [weights(d) for _, d in sorted(world.checker.committed.items())]

    assert all(
        sum(abs(one.get(n, 0) - two.get(n, 0)) for n in {*one, *two}) <= 1
        for one, two in itertools.pairwise(votes)
    )
    assert len(votes[-1]) == 7
    assert sum(votes[-1].values()) == 7


def test_of_two_nodes_the_tie_breaker_survives_alone_and_the_other_does_not() -> None:
    world = World(1, 2)
    world.start()
    holder = committed(world).policy
    assert holder is not None
    assert (holder.tie_breaker_node_id, holder.tie_breaker_votes) == ("a", 1)
    world.crash("b")
    world.run(6)
    assert world.nodes["a"].up.view.has_quorum
    world.boot("b")
    world.run_until(world.agreed, 10)
    world.crash("a")
    world.run(10)
    assert world.coordinator() is None
    assert world.nodes["b"].up.view.role != "coordinator"
    world.boot("a")
    world.run_until(world.agreed, 10)


def test_of_four_nodes_the_half_with_the_tie_breaker_goes_on() -> None:
    world = World(1, 4)
    world.start()
    world.cut("ab", "cd")
    world.run(6)
    leader = world.coordinator()

    assert leader is not None
    assert leader.node_id in "ab"
    assert all(world.nodes[n].up.view.role != "coordinator" for n in "cd")
    assert not world.nodes["c"].up.view.has_quorum


def test_nodes_of_other_versions_are_members_but_never_voters_or_planned() -> None:
    other = dataclasses.replace(facts_of("c"), mlx_version="0.0.1")
    world = World(1, 3, facts={"c": other})
    world.start(M)
    document = committed(world)

    assert "c" not in weights(document)
    assert document.member("c") is not None
    assert document.plan is not None
    assert set(document.plan.node_ids) == {"a", "b"}
    world.run(1.5)
    assert world.nodes["b"].up.view.liveness["c"] == "incompatible"
    assert world.nodes["c"].up.view.liveness["c"] == "incompatible"


def test_silence_makes_a_member_suspect_then_dead() -> None:
    world = World(1, 3)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    other = next(n for n in "abc" if n != leader.node_id)
    begun = world.now
    world.crash(other, power=True)
    suspect = world.run_until(lambda: leader.up.view.liveness[other] == "suspect", 3)
    world.run_until(lambda: leader.up.view.liveness[other] == "dead", 5)

    assert 0.6 <= suspect <= 1.2
    assert 2.7 <= world.now - begun <= 3.3


def test_an_observer_that_fares_badly_is_slower_to_call_others_dead() -> None:
    world = World(1, 3)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    other = next(n for n in "abc" if n != leader.node_id)
    world.step(leader, ev.LocalHealth(1))
    world.crash(other, power=True)
    world.run(5)
    assert leader.up.view.liveness[other] == "suspect"
    world.run(1.5)

    assert leader.up.view.liveness[other] == "dead"


def test_an_observer_that_was_away_does_not_blame_the_others() -> None:
    world = World(1, 2)
    world.start()
    leader = world.nodes["a"]
    assert world.coordinator() is leader
    world.now += 20
    world.step(leader, ev.Tick())

    assert leader.up.view.role == "coordinator", "its vote alone is a quorum"
    assert leader.up.view.liveness["b"] != "dead"


def test_a_member_that_moved_is_followed_and_mere_order_is_no_news() -> None:
    world = World(1, 3)
    world.start()
    leader = world.coordinator()
    assert leader is not None
    other = next(n for n in "abc" if n != leader.node_id)
    world.step(leader, hello(other, address="new:1", nonce=world.nodes[other].nonce))
    world.run(0.5)
    moved = committed(world).member(other)
    assert moved is not None
    assert moved.addresses == ("new:1",)
    version = committed(world).version
    world.step(leader, hello(other, address="new:1", nonce=world.nodes[other].nonce))
    world.run(0.5)

    assert committed(world).version == version


@pytest.mark.parametrize(("count", "median_limit"), [(3, 1.35), (5, 1.3)])
def test_a_new_coordinator_is_there_in_time(count: int, median_limit: float) -> None:
    times = []
    for seed in range(30):
        world = World(seed, count)
        world.start()
        world.run(world.rng.uniform(0, 1))
        leader = world.coordinator()
        assert leader is not None
        world.crash(leader)
        times.append(world.run_until(lambda world=world: world.coordinator() is not None, 10))  # type: ignore[misc]

    assert statistics.median(times) <= median_limit
    assert max(times) <= 2.5


def test_time_that_goes_back_stands_still() -> None:
    node = Solo(node_id="a", founder=True)
    node.tick()
    node.now -= 50
    node.step(ev.Tick())

    assert node.machine.view.role == "coordinator"


def test_misuse_is_named() -> None:
    with pytest.raises(LocalClusterMisuse, match="bootstrap_expect"):
        Solo(expect=0)
    with pytest.raises(LocalClusterMisuse, match="not an event"):
        Solo().step("boo")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_seconds", 1.5),
        ("campaign_retry_min_seconds", 1.0),
        ("heartbeat_seconds", 0.9),
        ("portable_bias_seconds", 1.0),
        ("dead_after_seconds", 0.5),
        ("max_voters", 0),
    ],
)
def test_settings_that_contradict_each_other_are_refused(field: str, value: float) -> None:
    with pytest.raises(LocalClusterSettingsInvalid, match=field):
        dataclasses.replace(ClusterSettings(), **{field: value})  # type: ignore[arg-type]
