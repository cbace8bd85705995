"""What every graph lane has to do, as checks that two ranks run at once, as threads or as processes. Imports mlx.

Each check is called on both ranks with a fresh lane, and raises AssertionError where the lane does not keep its word.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from macmesh_rdma.errors import (
    LocalLaneStateError,
    RemotePeerLostError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.graph_lane import Facts, GraphLane

RECEIVE_SECONDS = 0.5
"""Deadline of the lanes that are checked for it."""
PATIENCE_SECONDS = 20.0
BUFFERS = 8
"""Payloads that a lane must be able to hold for a receiver that is late."""
MOST_PAYLOAD_BYTES = 1 << 16
_STEPS = 40

Check = Callable[[GraphLane, int], None]
"""Takes the lane and its rank, 0 or 1."""


def sample(shape: tuple[int, ...], dtype: mx.Dtype, seed: int) -> mx.array:
    """An evaluated array, the same on both ranks."""
    with mx.stream(mx.cpu):
        array = (mx.random.normal(shape, key=mx.random.key(seed)) * 50).astype(dtype)
        mx.eval(array)
    return array


def facts_of(arrays: list[mx.array]) -> list[Facts]:
    """What the receiver has to know."""
    return [(tuple(array.shape), array.dtype) for array in arrays]


def payloads() -> list[list[mx.array]]:
    """Of one array and of several, of all sorts of types and sizes."""
    return [
        [sample((1, 1, 512), mx.bfloat16, 1)],
        [sample((2, 5), mx.float16, 2), sample((3,), mx.uint8, 3), sample((), mx.int32, 4)],
        [sample((0, 4), mx.float32, 5), sample((7, 3), mx.float32, 6)],
        [sample((8, 1, 2048), mx.bfloat16, 7), sample((1, 33), mx.int64, 8), sample((5,), mx.bool_, 9)],
    ]


def same(came: list[mx.array], expected: list[mx.array]) -> bool:
    """Whether both are equal, shapes and types included."""
    return len(came) == len(expected) and all(
        one.shape == other.shape and one.dtype == other.dtype and bool(mx.array_equal(one, other).item())
        for one, other in zip(came, expected, strict=True)
    )


def arrives_unchanged(lane: GraphLane, rank: int) -> None:
    """One payload after the other, in both directions."""
    for given in payloads():
        with lane.guarded():
            _queue(lane.send(1 - rank, given))
            came = lane.receive(1 - rank, facts_of(given))
            mx.eval(came)
        _expect(same(came, given), facts_of(given))


def keeps_order_in_one_evaluation(lane: GraphLane, rank: int) -> None:
    """Many payloads in both directions, those of each evaluated together."""
    own = [mx.full((3,), 100 * rank + number, mx.int32) for number in range(8)]
    with lane.guarded():
        _queue(*[lane.send(1 - rank, [array]) for array in own])
        came = [lane.receive(1 - rank, [((3,), mx.int32)])[0] for _ in own]
        mx.eval(came)
    told = _firsts(came)
    _expect(told == [100 * (1 - rank) + number for number in range(8)], told)


def keeps_order_however_evaluated(lane: GraphLane, rank: int) -> None:
    """The last payload is asked for first."""
    if rank == 0:
        with lane.guarded():
            mx.eval([lane.send(1, [mx.array([number], mx.int32)]) for number in range(5)])
        return
    with lane.guarded():
        came = [lane.receive(0, [((1,), mx.int32)])[0] for _ in range(5)]
        mx.eval(came[-1])
        mx.eval(came)
    _expect(_firsts(came) == list(range(5)), _firsts(came))


def reads_on_the_host(lane: GraphLane, rank: int) -> None:
    """A payload is read before its receive is evaluated; after it, it is the same."""
    given = [sample((2, 3), mx.uint32, seed) for seed in (1, 2, 3)]
    if rank == 0:
        with lane.guarded():
            _queue(*[lane.send(1, [array]) for array in given])
            lane.flush(1)
        return
    for number, array in enumerate(given, 1):
        with lane.guarded():
            came = lane.receive(0, facts_of([array]))
            content = lane.read(0, number, array.nbytes)
            mx.eval(came)
        _expect(content is None or content == bytes(memoryview(array)), number)  # type: ignore[arg-type]  # the stub omits the buffer protocol
        _expect(same(came, [array]), number)


def runs_ahead(lane: GraphLane, rank: int) -> None:
    """A ring of two that adds up, each step queued before the one before it is done."""
    queued: list[tuple[int, mx.array]] = []
    value = mx.zeros((4,), mx.float32)

    def end_oldest() -> None:
        number, value = queued.pop(0)
        with lane.guarded():
            mx.eval(value)
        expected = 2 * number + 1 + rank
        _expect(value.tolist() == [expected] * 4, (number, value.tolist()))

    for number in range(_STEPS):
        with lane.guarded():
            if rank == 0:
                if number:
                    (value,) = lane.receive(1, [((4,), mx.float32)])
                value = value + 1
                sent = lane.send(1, [value])
            else:
                (value,) = lane.receive(0, [((4,), mx.float32)])
                value = value + 1
                sent = lane.send(0, [value])
            _queue(sent, value)
        queued.append((number, value))
        if len(queued) > 1:
            end_oldest()
    while queued:
        end_oldest()
    with lane.guarded():
        if rank == 0:
            (value,) = lane.receive(1, [((4,), mx.float32)])
            mx.eval(value)
        lane.flush(1 - rank)
        lane.drain(1 - rank)
    if rank == 0:
        _expect(value.tolist() == [2 * _STEPS] * 4, value.tolist())


def waits_no_longer_than_its_deadline(lane: GraphLane, rank: int) -> None:
    """Nobody sends anything; the lane's deadline is `RECEIVE_SECONDS`."""
    began = time.monotonic()
    came: list[mx.array] = []

    def receive() -> None:
        with lane.guarded():
            came.extend(lane.receive(1 - rank, [((2,), mx.float32)]))
            mx.eval(came)

    error = _error_of(receive)
    _expect(isinstance(error, RemoteTimeoutError | RemotePeerLostError), repr(error))
    waited = time.monotonic() - began
    _expect(RECEIVE_SECONDS / 2 < waited < RECEIVE_SECONDS + PATIENCE_SECONDS, waited)
    _expect(isinstance(_error_of(lambda: _receive_one(lane, rank)), TransportError))
    if came:
        # What did not come is no value the second time either.
        _expect(isinstance(_error_of(lambda: _evaluate(lane, came)), TransportError))


def ends_waits_by_an_abort(lane: GraphLane, rank: int) -> None:
    """Rank 1 gives up while both wait."""
    if rank == 1:
        timer = threading.Timer(0.3, lane.abort, ["it has had enough"])
        timer.start()
    began = time.monotonic()
    error = _error_of(lambda: _receive_one(lane, rank))
    kind = LocalLaneStateError if rank else RemotePeerLostError
    _expect(type(error) is kind or (not rank and isinstance(error, RemotePeerLostError)), repr(error))
    _expect("it has had enough" in str(error), error)
    _expect(time.monotonic() - began < PATIENCE_SECONDS)


def notices_a_mismatch(lane: GraphLane, rank: int) -> None:
    """What comes has another shape; of as many bytes."""

    def both() -> None:
        with lane.guarded():
            _queue(lane.send(1 - rank, [mx.zeros((4, 3), mx.float32)]))
            mx.eval(lane.receive(1 - rank, [((3, 4), mx.float32)]))

    error = _error_of(both)
    _expect(isinstance(error, TransportError) and not isinstance(error, RemoteTimeoutError), error)


def refuses_what_cannot_be(lane: GraphLane, rank: int) -> None:
    """Such calls fail alone; a closed lane takes nothing."""
    for wrong in (lambda: lane.send(1 - rank, []), lambda: lane.receive(1 - rank, [])):
        _expect(isinstance(_error_of(wrong), LocalLaneStateError))
    arrives_unchanged(lane, rank)
    lane.flush(1 - rank)
    lane.drain(1 - rank)
    lane.close()
    lane.close()
    _expect(
        isinstance(_error_of(lambda: _receive_one(lane, rank)), LocalLaneStateError | RemotePeerLostError)
    )


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        arrives_unchanged,
        keeps_order_in_one_evaluation,
        keeps_order_however_evaluated,
        reads_on_the_host,
        runs_ahead,
        waits_no_longer_than_its_deadline,
        ends_waits_by_an_abort,
        notices_a_mismatch,
        refuses_what_cannot_be,
    )
}


def _expect(holds: bool, *told: object) -> None:
    """Raises AssertionError where it does not hold; with or without Python's -O."""
    if not holds:
        raise AssertionError(*told)


def _firsts(arrays: list[mx.array]) -> list[Any]:
    return [mx.array(array).reshape(-1).tolist()[0] for array in arrays]  # type: ignore[index]  # a list


def _queue(*arrays: mx.array) -> None:
    mx.async_eval(*arrays)  # type: ignore[no-untyped-call]  # the stub gives no types


def _receive_one(lane: GraphLane, rank: int) -> None:
    with lane.guarded():
        mx.eval(lane.receive(1 - rank, [((2,), mx.float32)]))


def _evaluate(lane: GraphLane, arrays: list[mx.array]) -> None:
    with lane.guarded():
        mx.eval(arrays)


def _error_of(call: Callable[[], object]) -> TransportError | None:
    try:
        call()
    except TransportError as error:
        return error
    return None
