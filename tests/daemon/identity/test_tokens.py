"""Join tokens: the book of an issuer, without sockets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.identity import JoinToken
from macmesh_daemon.identity.errors import LocalTokenError
from macmesh_daemon.identity.tokens import MAX_LIVE_TOKENS, TokenBook, hash_of_secret

CLUSTER = "ab" * 32
ISSUER = "a" * 26
NOW = 1_800_000_000.0


def issued(uses: int = 1, ttl_seconds: int = 3600) -> tuple[TokenBook, JoinToken]:
    book, token, _ = TokenBook().issue(
        cluster_hash=CLUSTER, issuer_node_id=ISSUER, ttl_seconds=ttl_seconds, uses=uses, now=NOW
    )
    return book, token


def test_a_token_survives_copying_and_hides_in_logs() -> None:
    _, token = issued()
    assert JoinToken.parse(f"  {token}\n") == token
    assert token.secret not in repr(token)
    assert len(token.secret) * 5 >= 128


@pytest.mark.parametrize(
    "text", ["", "mm1", "mm2" + str(issued()[1])[3:], str(issued()[1])[:-1], f"{issued()[1]}x"]
)
def test_what_is_no_token_is_said_without_repeating_it(text: str) -> None:
    with pytest.raises(LocalTokenError) as caught:
        JoinToken.parse(text)
    assert len(text) < 30 or text not in str(caught.value)


def test_only_the_hash_of_a_secret_is_kept() -> None:
    book, token = issued()
    text = repr(book) + str(book.to_json())
    assert token.secret not in text
    assert hash_of_secret(token.secret) in text
    assert TokenBook.from_json(book.to_json()) == book


def test_a_single_use_is_one_node_which_may_ask_again() -> None:
    book, token = issued()
    first = book.redeem(token.token_id, token.secret, node_id="n1", now=NOW)
    assert first.book is not None
    again = first.book.redeem(token.token_id, token.secret, node_id="n1", now=NOW + 5)
    assert again.book == first.book
    other = first.book.redeem(token.token_id, token.secret, node_id="n2", now=NOW)
    assert (other.book, other.reason) == (None, "TOKEN_SPENT")


@pytest.mark.parametrize("seconds", [3600, 100_000, -400])
def test_an_expired_token_admits_nobody_nor_one_from_the_future(seconds: int) -> None:
    book, token = issued()
    outcome = book.redeem(token.token_id, token.secret, node_id="n1", now=NOW + seconds)
    assert (outcome.book, outcome.reason) == (None, "TOKEN_SPENT")
    assert book.live_until(NOW + seconds) is None


def test_a_revoked_token_admits_nobody_not_even_whom_it_admitted() -> None:
    book, token = issued(uses=2)
    admitted = book.redeem(token.token_id, token.secret, node_id="n1", now=NOW).book
    assert admitted is not None
    revoked = admitted.revoke(token.token_id)
    assert revoked is not None
    assert revoked.redeem(token.token_id, token.secret, node_id="n1", now=NOW).book is None
    assert book.revoke("unknown") is None


@given(st.text(max_size=40), st.text(max_size=40))
def test_guesses_learn_nothing(token_id: str, secret: str) -> None:
    book, token = issued()
    unknown = book.redeem(token_id, secret, node_id="n1", now=NOW)
    wrong = book.redeem(token.token_id, secret, node_id="n1", now=NOW)
    stale = book.redeem(token.token_id, secret, node_id="n1", now=NOW + 10_000)
    assert unknown == wrong == stale
    assert (wrong.book, wrong.reason) == (None, "TOKEN_REFUSED")


def test_bounds_of_what_is_issued() -> None:
    book = TokenBook()
    for ttl, uses in ((0, 1), (8 * 86400, 1), (60, 0), (60, 65)):
        with pytest.raises(LocalTokenError):
            book.issue(cluster_hash=CLUSTER, issuer_node_id=ISSUER, ttl_seconds=ttl, uses=uses, now=NOW)
    for _ in range(MAX_LIVE_TOKENS):
        book, _, _ = book.issue(cluster_hash=CLUSTER, issuer_node_id=ISSUER, ttl_seconds=60, uses=1, now=NOW)
    with pytest.raises(LocalTokenError, match="revoke"):
        book.issue(cluster_hash=CLUSTER, issuer_node_id=ISSUER, ttl_seconds=60, uses=1, now=NOW)
    later, _, _ = book.issue(
        cluster_hash=CLUSTER, issuer_node_id=ISSUER, ttl_seconds=60, uses=1, now=NOW + 2 * 86400
    )
    assert len(later.records) == 1


@given(st.lists(st.sampled_from(["n1", "n2", "n3", "n4"]), max_size=12), st.integers(1, 4))
def test_a_token_never_admits_more_nodes_than_it_has_uses(nodes: list[str], uses: int) -> None:
    book, token = issued(uses=uses)
    admitted = set()
    for node in nodes:
        outcome = book.redeem(token.token_id, token.secret, node_id=node, now=NOW)
        if outcome.book is not None:
            book = outcome.book
            admitted.add(node)
    assert len(admitted) == min(uses, len(set(nodes)))
