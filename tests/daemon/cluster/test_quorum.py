"""Quorums meet, within a document and across one change of it."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_daemon.cluster.messages import ClusterDocument, Member, NodeFacts, Policy
from macmesh_daemon.cluster.quorum import founding_document, is_quorum, next_weight_change, weights
from simulator.parts import facts_of

LAPTOP = NodeFacts(portable=True)


def doc(
    voters: str, others: str = "", *, tie: str = "", votes: int = 0, laptops: str = "", evicting: str = ""
) -> ClusterDocument:
    members = tuple(
        Member(
            n,
            facts=LAPTOP if n in laptops else NodeFacts(),
            voter=n in voters,
            evicting=n in evicting,
        )
        for n in voters + others
    )
    return ClusterDocument(1, 1, 1, members, policy=Policy(tie, votes))


def quorums(document: ClusterDocument, names: str) -> list[frozenset[str]]:
    subsets = (itertools.combinations(names, size) for size in range(len(names) + 1))
    return [frozenset(s) for s in itertools.chain.from_iterable(subsets) if is_quorum(document, s)]


def change(document: ClusterDocument, *, dead: str = "", max_voters: int = 7) -> ClusterDocument:
    names = {m.node_id for m in document.members}
    return next_weight_change(
        document,
        coordinator="a",
        alive=names - set(dead),
        dead=set(dead),
        electable=names,
        max_voters=max_voters,
    )


def settle(document: ClusterDocument, *, dead: str = "", max_voters: int = 7) -> ClusterDocument:
    for _ in range(40):
        changed = change(document, dead=dead, max_voters=max_voters)
        if changed is document:
            return document
        document = changed
    raise AssertionError("the voters never settle")


def voters(document: ClusterDocument) -> str:
    return "".join(sorted(m.node_id for m in document.members if m.voter))


def test_two_nodes_the_tie_breaker_alone_is_a_quorum_the_other_is_not() -> None:
    pair = doc("ab", tie="a", votes=1)

    assert is_quorum(pair, {"a"})
    assert not is_quorum(pair, {"b"})


def test_half_is_no_quorum() -> None:
    assert not is_quorum(doc("abcd"), {"a", "b"})
    assert is_quorum(doc("abcd", tie="a", votes=1), {"a", "b"})
    assert not is_quorum(doc("abcd", tie="a", votes=1), {"b", "c"})
    assert not is_quorum(doc(""), set())


def test_one_join_in_one_step_with_an_implied_tie_breaker_would_be_unsafe() -> None:
    before, after = doc("ab", tie="a", votes=1), doc("abc")

    assert any(not q & r for q in quorums(before, "abc") for r in quorums(after, "abc"))


def test_voters_grow_to_an_odd_number_or_get_a_tie_breaker() -> None:
    assert weights(settle(doc("a", "bc"))) == {"a": 1, "b": 1, "c": 1}
    assert weights(settle(doc("a", "bcd", tie="a"))) == {"a": 2, "b": 1, "c": 1, "d": 1}
    assert voters(settle(doc("a", "bcdefghij"))) == "abcdefg"


def test_laptops_vote_last() -> None:
    assert voters(settle(doc("a", "bcdefghij", laptops="bcd"))) == "aefghij"
    assert voters(settle(doc("abcdefg", "hi", laptops="bc"))) == "adefghi"


def test_a_dead_voter_is_replaced_where_somebody_can_take_over() -> None:
    assert voters(settle(doc("abcdefg", "h"), dead="c")) == "abdefgh"
    assert voters(settle(doc("abc"), dead="c")) == "abc"


def test_a_dead_tie_breaker_hands_on_its_extra_vote() -> None:
    assert weights(settle(doc("abcd", tie="b", votes=1), dead="b")) == {"a": 2, "b": 1, "c": 1, "d": 1}


def path(document: ClusterDocument, *, dead: str = "") -> list[dict[str, int]]:
    """The votes of every version on the way to the goal."""
    votes = [weights(document)]
    while (changed := change(document, dead=dead)) is not document:
        document = changed
        if weights(document) != votes[-1]:
            votes.append(weights(document))
    return votes


def test_an_evicted_voter_goes_at_once_where_the_others_are_a_quorum() -> None:
    assert path(doc("abc", evicting="c")) == [
        {"a": 1, "b": 1, "c": 1},
        {"a": 1, "b": 1},
        {"a": 2, "b": 1},
    ]


def test_with_another_voter_dead_the_coordinator_gets_the_extra_vote_first() -> None:
    assert path(doc("abc", evicting="b", tie="a"), dead="c") == [
        {"a": 1, "b": 1, "c": 1},
        {"a": 2, "b": 1, "c": 1},
        {"a": 2, "c": 1},
    ]


def test_with_half_of_the_voters_dead_one_of_those_goes_before_the_evicted_one() -> None:
    assert path(doc("abcd", evicting="b", tie="a", votes=1), dead="cd") == [
        {"a": 2, "b": 1, "c": 1, "d": 1},
        {"a": 2, "b": 1, "d": 1},
        {"a": 2, "d": 1},
    ]


def test_where_all_others_are_evicted_the_dead_ones_go_first() -> None:
    votes = path(doc("abef", evicting="bef", tie="b", votes=1), dead="ef")

    assert votes[1] == {"a": 1, "b": 2, "f": 1}
    assert votes[-1] == {"a": 1}


def test_an_evicted_tie_breaker_loses_the_extra_vote_before_its_own() -> None:
    assert path(doc("abcd", evicting="b", tie="b", votes=1)) == [
        {"a": 1, "b": 2, "c": 1, "d": 1},
        {"a": 1, "b": 1, "c": 1, "d": 1},
        {"a": 1, "c": 1, "d": 1},
    ]


def test_no_step_is_taken_that_those_who_answer_could_not_commit() -> None:
    stuck = doc("abcde", evicting="b")

    assert change(stuck, dead="cde") is stuck
    assert change(doc("ab", "c", tie="a"), dead="bc").members == doc("ab", "c").members
    thin = doc("abc", "d", tie="a")
    assert change(thin, dead="bc") is thin, "two of three voters are silent: a fourth could not be committed"


def test_a_voter_that_is_gone_for_a_moment_is_not_replaced() -> None:
    document = doc("abcdefg", "h", tie="a")
    kept = next_weight_change(
        document,
        coordinator="a",
        alive=set("abdefgh"),
        dead={"c"},
        gone=set(),
        electable=set("abcdefgh"),
        max_voters=7,
    )

    assert kept is document


def test_who_is_being_evicted_is_made_no_voter_and_inherits_nothing() -> None:
    assert voters(settle(doc("a", "bc", evicting="b"))) == "ac"
    assert weights(settle(doc("a", "b", evicting="b"))) == {"a": 1}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_evictions_keep_quorums_meeting_commit_and_end(data: st.DataObject) -> None:
    names = "abcdef"[: data.draw(st.integers(2, 6))]
    voting = "a" + "".join(n for n in names[1:] if data.draw(st.booleans()))
    others = "".join(n for n in names if n not in voting)
    tie = data.draw(st.sampled_from(voting))
    votes = int(len(voting) % 2 == 0)
    evicting = "".join(n for n in names[1:] if data.draw(st.integers(0, 2)) == 0)
    dead = "".join(n for n in names[1:] if data.draw(st.integers(0, 2)) == 0)
    document = doc(voting, others, tie=tie, votes=votes, evicting=evicting)
    alive = set(names) - set(dead)
    had_quorum = is_quorum(document, alive)
    for _ in range(60):
        changed = change(document, dead=dead)
        if changed is document:
            break
        before, after = weights(document), weights(changed)
        assert sum(abs(before.get(n, 0) - after.get(n, 0)) for n in names) == 1 or before == after
        assert all(q & r for q in quorums(document, names) for r in quorums(changed, names))
        assert is_quorum(changed, alive), "it could never be committed"
        document = changed
    else:
        raise AssertionError("the voters never settle")
    if had_quorum:
        assert not set(evicting) & set(voters(document)), "an evicted node keeps its vote"


@settings(max_examples=150)
@given(data=st.data())
def test_every_step_keeps_quorums_meeting_and_the_steps_end(data: st.DataObject) -> None:
    names = "abcdefghi"[: data.draw(st.integers(1, 9))]
    voting = "a" + "".join(n for n in names[1:] if data.draw(st.booleans()))
    document = doc(
        voting,
        "".join(n for n in names if n not in voting),
        tie=data.draw(st.sampled_from(["", *names])),
        votes=data.draw(st.integers(0, 1)),
        laptops="".join(n for n in names if data.draw(st.booleans())),
    )
    max_voters = data.draw(st.integers(1, 6))
    for _ in range(40):
        dead = "".join(n for n in names[1:] if data.draw(st.integers(0, 4)) == 0)
        changed = change(document, dead=dead, max_voters=max_voters)
        before, after = weights(document), weights(changed)
        moved = sum(abs(before.get(n, 0) - after.get(n, 0)) for n in names)
        assert moved <= 1
        assert "a" in after, "the coordinator keeps its vote"
        document = changed
        if data.draw(st.booleans()):
            break
    settled = settle(document, max_voters=max_voters)
    count = len([m for m in settled.members if m.voter])
    assert count == min(max_voters, len(names))
    assert sum(weights(settled).values()) % 2 == 1


@given(
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
    st.integers(0, 4),
    st.integers(0, 31),
)
def test_weights_one_unit_apart_have_meeting_quorums(votes: list[int], grown: int, one: int) -> None:
    def is_heavy(subset: int, of: list[int]) -> bool:
        return 2 * sum(v for i, v in enumerate(of) if subset >> i & 1) > sum(of)

    other = [v + (i == grown) for i, v in enumerate(votes)]

    assert not (is_heavy(one, votes) and is_heavy(31 - one, other)), "two quorums without a common voter"


def test_the_founding_document_takes_seven_voters_the_founder_and_those_that_stay() -> None:
    others = [Member(n, facts=LAPTOP if n in "bc" else facts_of(n), voter=n != "d") for n in "bcdefghij"]
    founded = founding_document(Member("a", voter=True), others, 7)

    assert voters(founded) == "aefghij"
    assert [m.node_id for m in founded.members] == list("abcdefghij")
    assert founded.policy == Policy("a", 0)
    assert founding_document(Member("a", voter=True), others[:1], 7).policy == Policy("a", 1)
