"""Votes: once per term, durable, never against a living coordinator."""

import pytest

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import (
    ClusterDocument,
    HeartbeatRequest,
    HeartbeatResponse,
    Member,
    NodeFacts,
    RequestVoteRequest,
    RequestVoteResponse,
)
from macmesh_daemon.cluster.state import PersistentState
from macmesh_daemon.cluster.tracker import MemberTrack
from simulator.solo import Solo, beat, document, kinds, only, stored, vote


def granted(response: object) -> bool:
    assert isinstance(response, RequestVoteResponse)
    return response.granted


def pre_granted(term: int) -> RequestVoteResponse:
    return RequestVoteResponse(pre_vote=True, granted=True, generation=1, term=term)


def given(term: int) -> RequestVoteResponse:
    return RequestVoteResponse(pre_vote=False, granted=True, generation=1, term=term)


def role(node: Solo) -> str:
    return node.machine.view.role


def elected(names: str = "abc") -> Solo:
    """The coordinator "b" of term 2, with the vote of "a"."""
    node = Solo(stored(names))
    node.tick()
    node.step(ev.ResponseReceived("a", pre_granted(2), 1.0))
    node.step(ev.ResponseReceived("a", given(2), 1.0))
    assert role(node) == "coordinator"
    return node


def test_a_vote_is_durable_before_it_is_told() -> None:
    effects = Solo(stored()).ask("a", vote(2))

    assert kinds(effects) == ["Persist", "Reply"]
    assert only(effects, fx.Persist)[0].state.voted_for == "a"
    assert only(effects, fx.Persist)[0].state.ballot == (1, 2)


def test_a_vote_survives_a_reboot() -> None:
    node = Solo(stored())
    assert granted(node.answer("a", vote(2)))
    again = node.reboot()

    assert not granted(again.answer("c", vote(2)))
    assert granted(again.answer("a", vote(2)))


def test_only_one_candidate_gets_the_vote_of_a_term() -> None:
    node = Solo(stored())

    assert granted(node.answer("a", vote(2)))
    assert not granted(node.answer("c", vote(2)))
    assert granted(node.answer("c", vote(3)))


def test_a_vote_request_of_a_past_term_gets_nothing_and_uses_up_nothing() -> None:
    node = Solo(stored(term=4))

    assert not granted(node.answer("a", vote(3, version=(1, 4, 1))))
    assert node.state.voted_for == ""
    assert granted(node.answer("c", vote(5, version=(1, 4, 1))))


def test_the_own_candidacy_is_durable_before_votes_are_asked_for() -> None:
    node = Solo(stored())
    node.tick()
    effects = node.step(ev.ResponseReceived("a", pre_granted(2), 1.0))

    assert kinds(effects) == ["Persist", "Send", "Send"]
    assert (node.state.ballot, node.state.voted_for) == ((1, 2), "b")


def test_the_term_survives_a_reboot() -> None:
    node = Solo(stored())
    node.answer("a", beat(5))
    response = node.reboot().answer("a", beat(4))

    assert isinstance(response, HeartbeatResponse)
    assert not response.accepted
    assert response.term == 5


def test_a_candidate_that_reboots_does_not_vote_for_another_in_its_term() -> None:
    node = Solo(stored())
    node.tick()
    node.step(ev.ResponseReceived("a", pre_granted(2), 1.0))

    assert not granted(node.reboot().answer("a", vote(2)))


@pytest.mark.parametrize("pre_vote", [True, False])
def test_no_vote_is_given_while_a_coordinator_lives(pre_vote: bool) -> None:
    node = Solo(stored())
    node.answer("a", beat(1))

    assert not granted(node.answer("c", vote(2, pre_vote=pre_vote), after=0.99))
    assert node.state.term == 1, "a disturber's term is not taken over either"
    assert granted(node.answer("c", vote(2, pre_vote=pre_vote), after=0.02))


def test_a_coordinator_with_its_lease_gives_no_vote() -> None:
    node = elected()

    assert not granted(node.answer("c", vote(9)))
    assert role(node) == "coordinator"
    assert node.state.term == 2


def test_a_pre_vote_changes_nothing() -> None:
    node = Solo(stored())
    effects = node.ask("a", vote(2, pre_vote=True))

    assert kinds(effects) == ["Reply"]
    assert granted(node.answer("c", vote(2, pre_vote=True)))


def test_no_term_is_begun_without_a_quorum_of_pre_votes() -> None:
    node = Solo(stored("abcde"))
    for _ in range(5):
        node.tick()
        node.step(ev.ResponseReceived("a", pre_granted(2), 1.0))

    assert node.state.term == 1


def test_an_answer_to_an_earlier_campaign_is_no_vote() -> None:
    node = Solo(stored())
    node.tick()
    node.step(ev.ResponseReceived("a", pre_granted(2), 1.0))
    node.step(ev.ResponseReceived("a", given(1), 1.0))
    node.step(ev.ResponseReceived("c", pre_granted(2), 1.0))

    assert role(node) == "candidate"


def test_one_voter_twice_is_one_vote() -> None:
    node = Solo(stored("abcde"))
    node.tick()
    for peer in ("a", "c"):
        node.step(ev.ResponseReceived(peer, pre_granted(2), 1.0))
    node.step(ev.ResponseReceived("a", given(2), 1.0))
    node.step(ev.ResponseReceived("a", given(2), 1.0))
    assert role(node) == "candidate"
    node.step(ev.ResponseReceived("z", given(2), 1.0))
    assert role(node) == "candidate", "who is no voter does not count"
    node.step(ev.ResponseReceived("c", given(2), 1.0))

    assert role(node) == "coordinator"


@pytest.mark.parametrize("pre_vote", [True, False])
def test_an_older_document_gets_no_vote(pre_vote: bool) -> None:
    newer = PersistentState(generation=1, term=1, document=document(seq=3))

    assert not granted(Solo(newer).answer("a", vote(2, pre_vote=pre_vote, version=(1, 1, 2))))
    assert granted(Solo(newer).answer("a", vote(2, pre_vote=pre_vote, version=(1, 1, 3))))


def test_a_blank_node_votes_but_does_not_campaign() -> None:
    node = Solo()

    assert node.machine.next_deadline() is None
    assert role(node) == "blank"
    assert granted(node.answer("a", vote(1)))
    assert node.machine.next_deadline() is None


def test_a_member_without_vote_does_not_campaign() -> None:
    doc = document("acd")
    doc = ClusterDocument(1, 1, 1, (*doc.members, Member("b", facts=NodeFacts())), policy=doc.policy)
    node = Solo(PersistentState(generation=1, term=1, document=doc))
    for _ in range(3):
        assert "Send" not in kinds(node.tick())


def test_a_coordinator_steps_down_for_a_higher_term() -> None:
    node = elected()
    refused = HeartbeatResponse(generation=1, term=7, round=1)
    effects = node.step(ev.ResponseReceived("a", refused, 1.0))

    assert role(node) == "follower"
    assert only(effects, fx.Persist)[-1].state.ballot == (1, 7)


def test_a_generation_outranks_every_term_of_those_before() -> None:
    node = Solo(stored(term=9))
    response = node.answer("a", HeartbeatRequest(2, 1, 1))

    assert isinstance(response, HeartbeatResponse)
    assert response.accepted
    assert node.state.ballot == (2, 1)
    response = node.answer("c", HeartbeatRequest(1, 10, 1))
    assert isinstance(response, HeartbeatResponse)
    assert not response.accepted


def test_a_second_coordinator_of_a_term_is_refused_and_reported() -> None:
    node = Solo(stored())
    node.answer("a", beat(2))
    effects = node.ask("c", beat(2))

    (reply,) = only(effects, fx.Reply)
    assert isinstance(reply.message, HeartbeatResponse)
    assert not reply.message.accepted
    assert [a.event for a in only(effects, fx.Announce)] == ["two coordinators in one term"]


def test_a_coordinator_without_answers_steps_down_within_its_lease() -> None:
    node = elected()
    begun = node.now
    for _ in range(20):
        if role(node) == "coordinator":
            node.tick()

    assert role(node) == "follower"
    assert node.now - begun <= node.settings.lease_seconds + node.settings.heartbeat_seconds


def test_the_lease_counts_from_when_the_heartbeat_was_sent() -> None:
    node = elected()
    effects = node.tick()
    sent = next(
        s.message for s in only(effects, fx.Send) if s.peer == "a" and isinstance(s.message, HeartbeatRequest)
    )
    sent_at = node.now
    answer = HeartbeatResponse(1, 2, sent.round, accepted=True)
    node.step(ev.ResponseReceived("a", answer, 500.0), after=0.5)
    assert role(node) == "coordinator"
    node.step(ev.Tick(), after=0.31)

    assert node.now - sent_at > node.settings.lease_seconds
    assert role(node) == "follower"


def test_an_answer_that_was_overtaken_does_not_count_and_none_counts_twice() -> None:
    track = MemberTrack(since=0.0)
    first, second = track.next_round(1.0), track.next_round(2.0)

    assert track.on_answer(HeartbeatResponse(1, 2, second, 1, 2, 2, accepted=True), 1.0, 2.1)
    assert not track.on_answer(HeartbeatResponse(1, 2, second, 1, 2, 9, accepted=True), 1.0, 2.2)
    assert not track.on_answer(HeartbeatResponse(1, 2, first, 1, 2, 1, accepted=True), 1.0, 2.3)
    assert track.stored == (1, 2, 2)
    assert track.lease_at == 2.0


def test_a_machine_that_slept_leads_no_more() -> None:
    node = elected()
    node.step(ev.LocalHealth(0, slept=True))

    assert role(node) == "follower"


def test_portable_machines_wait_longer() -> None:
    still, portable = Solo(stored()), Solo(stored())
    portable.machine._context.facts = NodeFacts(portable=True)
    waits: dict[str, list[float]] = {"still": [], "portable": []}
    for _ in range(200):
        for name, node in (("still", still), ("portable", portable)):
            node.machine._election.restart_timer()
            deadline = node.machine._election.deadline
            assert deadline is not None
            waits[name].append(deadline - node.now)

    assert 1.0 <= min(waits["still"]) < 1.1
    assert min(waits["portable"]) >= 1.5
    assert max(waits["still"] + waits["portable"]) <= 2.0


def test_a_stale_answer_to_another_terms_heartbeat_is_no_lease() -> None:
    node = elected()
    sent = next(s.message for s in only(node.tick(), fx.Send) if isinstance(s.message, HeartbeatRequest))
    stale = HeartbeatResponse(1, 1, sent.round, *(1, 1, 1), accepted=True)
    node.step(ev.ResponseReceived("a", stale, 1.0))

    assert node.machine._coordinator is not None
    assert node.machine._coordinator.watch.tracks["a"].contact_at is None


def test_requests_of_an_evidently_wrong_kind_name_the_misuse() -> None:
    with pytest.raises(ValueError, match="not negative"):
        Solo().step(ev.RequestReceived(-1, "a", RequestVoteRequest()))
