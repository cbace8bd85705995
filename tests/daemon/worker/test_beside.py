"""Transfers beside the inference thread."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import cast

import mlx.core as mx
import pytest

from macmesh.v1 import lane_pb2
from macmesh_daemon.worker.beside import Beside, Receiver, Sender
from macmesh_daemon.worker.transfers import Transfers
from macmesh_rdma.errors import RemotePeerLostError

PATIENCE_SECONDS = 120.0


class GatedTransfers(Transfers):
    """Every transfer waits until it is let through."""

    def __init__(self, *, fills: bool = True) -> None:
        self.fills = fills
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.done: list[tuple[str, int, str]] = []
        self.sent: list[list[float]] = []
        self.error: Exception | None = None

    def _pass(self, what: str, number: int) -> None:
        self.begun.release()
        assert self.gate.acquire(timeout=PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error
        self.done.append((what, number, threading.current_thread().name))

    def receive(self, number: int) -> list[mx.array]:
        self._pass("receive", number)
        return [ready(number)]

    def receive_into(self, number: int, arrays: Sequence[mx.array]) -> None:
        raise NotImplementedError

    def send(self, number: int, arrays: Sequence[mx.array]) -> None:
        self._pass("send", number)
        self.sent.append([cast("list[float]", array.tolist())[0] for array in arrays])

    def send_result(self, done: lane_pb2.StepDone) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def ready(value: float) -> mx.array:
    array = mx.full((3,), value)
    mx.eval(array)
    return array


class Waits:
    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.count += 1
        yield


def test_a_send_beside_returns_at_once_and_later_ones_keep_the_order() -> None:
    transfers, waits = GatedTransfers(), Waits()
    sender = Sender(transfers, waits)
    own = threading.current_thread().name
    sender.send_beside(1, [ready(1), ready(2)])
    assert transfers.begun.acquire(timeout=PATIENCE_SECONDS)
    assert (transfers.done, waits.count) == ([], 0)
    transfers.gate.release(2)
    sender.send_beside(2, [ready(3)])
    assert waits.count == 1
    assert transfers.done[0] == ("send", 1, "sender")
    transfers.gate.release()
    sender.send(3, [ready(4)])
    assert transfers.done == [("send", 1, "sender"), ("send", 2, "sender"), ("send", 3, own)]
    assert transfers.sent == [[1, 2], [3], [4]]


def test_a_lane_with_streams_of_its_own_sends_on_the_thread_that_calls() -> None:
    transfers, waits = GatedTransfers(fills=False), Waits()
    transfers.gate.release(2)
    Sender(transfers, waits).send_beside(1, [ready(1)])
    receiver = Receiver(transfers, waits)
    receiver.receive_ahead(2)
    assert not receiver.ahead
    receiver.receive(2)
    own = threading.current_thread().name
    assert transfers.done == [("send", 1, own), ("receive", 2, own)]


def test_an_error_beside_is_told_at_once_and_raised_by_what_comes_next() -> None:
    transfers, told = GatedTransfers(), threading.Event()
    errors: list[Exception] = []

    def failed(error: Exception) -> None:
        errors.append(error)
        told.set()

    sender = Sender(transfers, Waits(), failed)
    transfers.error = RemotePeerLostError("rank 1 has gone")
    transfers.gate.release(2)
    sender.send_beside(1, [ready(1)])
    assert told.wait(PATIENCE_SECONDS)
    assert errors == [transfers.error]
    with pytest.raises(RemotePeerLostError, match="has gone"):
        sender.send(2, [ready(2)])
    assert transfers.done == []


def test_what_comes_next_is_taken_in_ahead_once() -> None:
    transfers, waits = GatedTransfers(), Waits()
    receiver = Receiver(transfers, waits)
    receiver.receive_ahead(7)
    receiver.receive_ahead(8)
    assert receiver.ahead
    transfers.gate.release()
    assert receiver.receive(7)[0].tolist() == [7, 7, 7]
    assert (receiver.ahead, waits.count) == (False, 1)
    assert transfers.done == [("receive", 7, "receiver")]


def test_one_call_at_a_time() -> None:
    beside: Beside[int] = Beside("one")
    with pytest.raises(LookupError):
        beside.end()
    beside.begin(lambda: 5)
    with pytest.raises(ValueError, match="not taken"):
        beside.begin(lambda: 6)
    assert (beside.end(), beside.busy) == (5, False)
