import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_rdma.control.state import PING, PONG, Keepalive, Outbox, encode_frame
from macmesh_rdma.errors import LocalLaneFullError


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120))
def test_the_outbox_keeps_order_and_its_bound(sizes: list[int], max_bytes: int) -> None:
    outbox, sent, got = Outbox(max_bytes), [], []
    for index, size in enumerate(sizes):
        frame = encode_frame(b"m", bytes([index]) * size)
        try:
            outbox.put(frame, deadline=1.0)
            sent.append(frame)
        except LocalLaneFullError:
            assert outbox.waiting_bytes + len(frame) > max_bytes
            taken = outbox.take()
            assert taken is not None
            got.append(taken)
            outbox.written()
        assert outbox.waiting_bytes <= max(max_bytes, 55 + 5)
    while (frame_or_none := outbox.take()) is not None:
        got.append(frame_or_none)
        outbox.written()
    assert got == sent
    assert outbox.empty
    assert outbox.waiting_bytes == 0


def test_one_message_always_fits() -> None:
    outbox = Outbox(10)
    outbox.put(bytes(1000), 1.0)
    with pytest.raises(LocalLaneFullError, match="1000 bytes wait already"):
        outbox.put(b"x", 1.0)


def test_signs_of_life_go_first_and_do_not_pile_up() -> None:
    outbox = Outbox(100)
    outbox.put(b"message", 1.0)
    for nonce in range(1000):
        outbox.put_sign(PONG, nonce)
    outbox.put_sign(PING, 1)
    assert outbox.take() == encode_frame(PONG, (999).to_bytes(8, "big"))
    assert outbox.take() == encode_frame(PING, (1).to_bytes(8, "big"))
    assert outbox.take() == b"message"
    assert not outbox.empty
    outbox.written()
    assert outbox.empty


def test_overdue_while_waiting_and_while_being_written() -> None:
    outbox = Outbox(100)
    outbox.put(b"a", 1.0)
    outbox.put(b"b", 2.0)
    assert not outbox.is_overdue(0.9)
    assert outbox.take() == b"a"
    assert outbox.is_overdue(1.0)
    outbox.written()
    assert not outbox.is_overdue(1.0)
    assert outbox.is_overdue(2.0)


def test_last_words_replace_what_waits() -> None:
    outbox = Outbox(100)
    outbox.put(b"a", 1.0)
    outbox.put_last(b"bye")
    assert outbox.take() == b"bye"
    assert outbox.take() is None
    assert outbox.empty


def run(keepalive: Keepalive, until: float, *, answers: bool, start: float = 0.0) -> tuple[str, float]:
    now = start
    while now < until:
        now += 0.25
        told = keepalive.tick(now)
        if told == "lost":
            return "lost", now
        if told == "ping" and answers:
            assert keepalive.answered(keepalive.nonce)
    return "alive", now


def test_a_peer_that_answers_lives_and_a_silent_one_is_lost_in_time() -> None:
    keepalive = Keepalive(1.0, 3.0, 0.0)
    assert run(keepalive, 100.0, answers=True) == ("alive", 100.0)
    told, when = run(keepalive, 200.0, answers=False, start=100.0)
    assert told == "lost"
    assert 103.0 <= when <= 104.25


def test_our_own_sleep_is_not_the_peers_silence() -> None:
    keepalive = Keepalive(1.0, 3.0, 0.0)
    assert run(keepalive, 2.0, answers=False)[0] == "alive"
    # Asleep for an hour, or starved: the answers may lie in the socket.
    assert keepalive.tick(3600.0) != "lost"
    assert run(keepalive, 3604.0, answers=False, start=3600.0)[0] == "lost"


@pytest.mark.parametrize("nonce", [0, 2, 1 << 63])
def test_an_answer_to_what_was_not_asked(nonce: int) -> None:
    keepalive = Keepalive(1.0, 3.0, 0.0)
    run(keepalive, 1.0, answers=False)
    assert keepalive.nonce == 1
    assert not keepalive.answered(nonce)
