import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_rdma.errors import (
    LocalOptionError,
    RemoteAuthenticationError,
    RemoteMismatchError,
    RemoteTransportError,
)
from macmesh_rdma.joining.handshake import AcceptorHandshake, DialerHandshake, Handshake
from macmesh_rdma.joining.introduction import Introduction, Purpose

KEY = b"k" * 32
DIALER = Introduction(
    name="stages",
    epoch=(1, 4, 2),
    source=1,
    target=0,
    size=3,
    purpose=Purpose.SIDE,
    lane=0,
    stripe=0,
    digest=b"d" * 16,
    nonce=b"1" * 32,
)
ACCEPTOR = dataclasses.replace(DIALER, source=0, target=1, nonce=b"0" * 32)


def pair(
    dialer: Introduction = DIALER,
    acceptor: Introduction = ACCEPTOR,
    *,
    dialer_key: bytes = KEY,
    acceptor_key: bytes = KEY,
    verdict: str = "",
) -> tuple[DialerHandshake, AcceptorHandshake]:
    return (
        DialerHandshake(dialer_key, dialer),
        AcceptorHandshake(acceptor_key, lambda _: acceptor, lambda _: verdict),
    )


def deliver(raw: bytes, to: Handshake) -> None:
    while raw and to.missing_bytes:
        count = to.missing_bytes
        to.feed(raw[:count])
        raw = raw[count:]


def converse(dialer: Handshake, acceptor: Handshake) -> dict[str, Exception]:
    """Lets both talk until nothing moves; what each raised."""
    raised: dict[str, Exception] = {}
    moved = True
    while moved:
        moved = False
        for name, speaker, hearer in (("acceptor", dialer, acceptor), ("dialer", acceptor, dialer)):
            raw = speaker.take_outgoing()
            if raw and name not in raised:
                moved = True
                try:
                    deliver(raw, hearer)
                except RemoteTransportError as error:
                    raised[name] = error
    return raised


def test_two_ranks_with_the_same_key_believe_each_other() -> None:
    dialer, acceptor = pair()
    assert dialer.peer is None
    assert converse(dialer, acceptor) == {}
    assert dialer.finished
    assert acceptor.finished
    believed = [dialer.peer, acceptor.peer]
    assert believed == [ACCEPTOR, DIALER]


def test_nothing_is_believed_without_the_key() -> None:
    dialer, acceptor = pair(dialer_key=b"x" * 32)
    raised = converse(dialer, acceptor)
    assert isinstance(raised["dialer"], RemoteAuthenticationError)
    assert "rank 0 does not hold the key of epoch 1.4.2" in str(raised["dialer"])
    assert dialer.peer is None
    assert acceptor.peer is None
    assert acceptor.claimed == DIALER
    assert not acceptor.finished


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epoch": (1, 4, 3)}, "epoch 1.4.3"),
        ({"name": "other"}, "group 'other'"),
        ({"size": 4}, "4 ranks"),
        ({"source": 2}, "rank 2"),
        ({"target": 2}, "rank 2"),
        ({"digest": b"e" * 16}, "options"),
    ],
)
def test_a_proved_peer_that_differs_is_told_and_both_sides_know(change: dict[str, object], said: str) -> None:
    dialer, acceptor = pair(dataclasses.replace(DIALER, **change))  # type: ignore[arg-type]  # drawn by name
    raised = converse(dialer, acceptor)
    assert isinstance(raised["dialer"], RemoteMismatchError)
    assert isinstance(raised["acceptor"], RemoteMismatchError)
    assert said in str(raised["acceptor"])
    assert raised["acceptor"].peer == dataclasses.replace(DIALER, **change).source  # type: ignore[arg-type]  # same
    assert acceptor.peer is not None
    assert not acceptor.finished
    assert not dialer.finished


def test_a_verdict_travels() -> None:
    dialer, acceptor = pair(verdict="rank 1 is connected already")
    raised = converse(dialer, acceptor)
    assert "connected already" in str(raised["dialer"])
    assert "connected already" in str(raised["acceptor"])


def test_our_own_words_sent_back_are_no_proof() -> None:
    dialer, acceptor = pair()
    deliver(dialer.take_outgoing(), acceptor)
    answer = acceptor.take_outgoing()
    with pytest.raises(RemoteAuthenticationError):
        deliver(answer[-32:], acceptor)
    mirror = DialerHandshake(KEY, DIALER)
    hello = mirror.take_outgoing()
    with pytest.raises(RemoteAuthenticationError):
        deliver(hello + bytes(32), mirror)


def test_a_recorded_dialler_cannot_be_played_again() -> None:
    dialer, acceptor = pair()
    hello = dialer.take_outgoing()
    deliver(hello, acceptor)
    deliver(acceptor.take_outgoing(), dialer)
    proof = dialer.take_outgoing()
    fresh = AcceptorHandshake(
        KEY, lambda _: dataclasses.replace(ACCEPTOR, nonce=os.urandom(32)), lambda _: ""
    )
    deliver(hello, fresh)
    with pytest.raises(RemoteAuthenticationError, match="stranger"):
        deliver(proof, fresh)


def test_misuse_is_refused() -> None:
    with pytest.raises(LocalOptionError, match="at least 16"):
        DialerHandshake(b"short", DIALER)
    with pytest.raises(LocalOptionError, match="name"):
        dataclasses.replace(DIALER, name="x" * 300)
    with pytest.raises(LocalOptionError, match="range"):
        dataclasses.replace(DIALER, source=70000)
    dialer, _ = pair()
    with pytest.raises(LocalOptionError, match="missing"):
        dialer.feed(bytes(100_000))


def conversation_bytes() -> list[tuple[str, bytes]]:
    dialer, acceptor = pair()
    hello = dialer.take_outgoing()
    deliver(hello, acceptor)
    answer = acceptor.take_outgoing()
    deliver(answer, dialer)
    proof = dialer.take_outgoing()
    deliver(proof, acceptor)
    return [("acceptor", hello + proof), ("dialer", answer + acceptor.take_outgoing())]


RECORDED = conversation_bytes()


@given(st.data())
def test_garbled_cut_or_repeated_bytes_never_pass_and_never_ask_for_much(data: st.DataObject) -> None:
    side, raw = RECORDED[data.draw(st.integers(0, 1))]
    position = data.draw(st.integers(0, len(raw) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "repeat", "drop"]))
    if kind == "flip":
        bent = raw[:position] + bytes([raw[position] ^ data.draw(st.integers(1, 255))]) + raw[position + 1 :]
    elif kind == "cut":
        bent = raw[:position]
    elif kind == "repeat":
        count = data.draw(st.integers(1, len(raw) - position))
        bent = raw[: position + count] + raw[position:]
    else:
        bent = raw[:position] + raw[position + 1 :]
    dialer, acceptor = pair()
    victim: Handshake = acceptor if side == "acceptor" else dialer
    fed = 0
    try:
        while fed < len(bent) and victim.missing_bytes:
            count = min(victim.missing_bytes, data.draw(st.integers(1, 200)), len(bent) - fed)
            victim.feed(bent[fed : fed + count])
            fed += count
            assert victim.missing_bytes < 1100
    except RemoteTransportError:
        assert not victim.finished
        return
    # Where bytes were repeated, the true ones may all have come before the repetition.
    assert not victim.finished or bent[:fed] == raw


@given(st.binary(max_size=600))
def test_noise_never_passes(noise: bytes) -> None:
    for victim in pair():
        victim.take_outgoing()
        try:
            deliver(noise, victim)
        except RemoteAuthenticationError:
            pass
        else:
            assert victim.missing_bytes
        assert not victim.finished
        assert victim.peer is None
