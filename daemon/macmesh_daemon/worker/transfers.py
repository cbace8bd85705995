"""How arrays cross between the stages, and results from the tail to the head. Imports mlx."""

import abc
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import mlx.core as mx
from google.protobuf.message import DecodeError

from macmesh.v1 import lane_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.worker.errors import RemoteNeighbourError
from macmesh_rdma.errors import TransportError
from macmesh_rdma.lane import TensorLane

Put = Callable[[lane_pb2.StepDone | Exception], None]
"""Hands the inference thread a result, or what ended the transfers."""


class Transfers(abc.ABC):
    """One stage's way to the stages beside it: evaluated arrays down, results up.

    All calls come from the inference thread. Each takes at most the step's deadline; after an error nothing can be
    sent or received any more.
    """

    fills: bool
    """Whether `receive_into` can be used."""

    @abc.abstractmethod
    def receive(self, number: int) -> list[mx.array]:
        """What the stage before hands on in this step, evaluated.

        Raises:
            RemoteScheduleError: what comes belongs to another step.
            RemoteNeighbourError: nothing came in time.
            TransportError: the stage before is lost.
        """

    @abc.abstractmethod
    def receive_into(self, number: int, arrays: Sequence[mx.array]) -> None:
        """The same, into the memory of evaluated arrays of the right shapes and types."""

    @abc.abstractmethod
    def send(self, number: int, arrays: Sequence[mx.array]) -> None:
        """Hands evaluated arrays on to the next stage; may keep them until it has taken them."""

    @abc.abstractmethod
    def send_result(self, done: lane_pb2.StepDone) -> None:
        """At the tail: tells the head that a step is done."""

    def listen(self, put: Put) -> None:  # noqa: B027  results may come another way
        """At the head: results go to ``put`` from now on, from another thread."""

    def abort(self, reason: str) -> bool:  # noqa: ARG002  for those that can
        """Ends every wait in the transfers, which fails. From any thread.

        Returns:
            Whether it can: else a wait ends only by itself.
        """
        return False

    @abc.abstractmethod
    def close(self) -> None:
        """Gives up what carries them; harmless when repeated. From the thread that opened them."""


class LaneTransfers(Transfers):
    """Over a tensor lane, which carries bytes alone, with announcements and results on the control lane.

    A receiver posts its receive only when the arrays are announced: some lanes spin while they wait.

    Args:
        lane: to the stages beside this one.
        announced: announcements of the stage before.
        announce: to the next stage.
        result: to the head.
        deadline_seconds: longest wait.
    """

    fills = False

    def __init__(
        self,
        lane: TensorLane,
        *,
        announced: "queue.SimpleQueue[lane_pb2.StepPayload]",
        announce: Callable[[lane_pb2.StepPayload], None],
        result: Callable[[lane_pb2.StepDone], None],
        deadline_seconds: float,
    ) -> None:
        self.lane = lane
        """What carries the arrays."""
        self._announced = announced
        self._announce = announce
        self._result = result
        self._deadline_seconds = deadline_seconds

    def receive(self, number: int) -> list[mx.array]:
        """See `Transfers.receive`."""
        try:
            payload = self._announced.get(timeout=self._deadline_seconds)
        except queue.Empty:
            raise RemoteNeighbourError(
                f"the stage before handed nothing on for {self._deadline_seconds:g} s after step {number} was given out"
            ) from None
        if payload.number != number:
            raise RemoteScheduleError(
                f"the stage before hands on step {payload.number} where {number} is due"
            )
        return [
            self.lane.receive(tuple(facts.shape), dtype_of(facts.dtype), self._deadline_seconds)
            for facts in payload.arrays
        ]

    def receive_into(self, number: int, arrays: Sequence[mx.array]) -> None:
        """Not for this lane, which makes its arrays itself."""
        raise NotImplementedError(
            f"{self.lane.name} makes the arrays of step {number} itself, not {len(arrays)}"
        )

    def send(self, number: int, arrays: Sequence[mx.array]) -> None:
        """See `Transfers.send`."""
        self._announce(
            lane_pb2.StepPayload(
                number=number,
                arrays=[
                    lane_pb2.ArrayFacts(shape=array.shape, dtype=dtype_name(array.dtype)) for array in arrays
                ],
            )
        )
        for array in arrays:
            self.lane.send(array, self._deadline_seconds)

    def send_result(self, done: lane_pb2.StepDone) -> None:
        """See `Transfers.send_result`."""
        self._result(done)

    def close(self) -> None:
        """See `Transfers.close`."""
        self.lane.close()


class Host(Protocol):
    """What `HostTransfers` needs of a host lane."""

    def send(self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float) -> None:
        """Sends evaluated arrays with their shapes and types."""

    def receive(self, peer: int, timeout_seconds: float) -> list[mx.array]:
        """New arrays."""

    def receive_into(self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float) -> None:
        """Fills the memory of evaluated arrays."""

    def send_message(self, peer: int, data: bytes, timeout_seconds: float) -> None:
        """Sends bytes."""

    def receive_message(self, peer: int, timeout_seconds: float | None) -> bytes:
        """The next bytes."""

    def abort(self, reason: str) -> None:
        """Ends every wait; from any thread."""

    def close(self) -> None:
        """Gives everything up."""


class HostTransfers(Transfers):
    """Over a host lane: the host moves evaluated memory, past MLX's streams.

    Args:
        lane: to the stages beside this one, and between tail and head.
        stage: ours.
        stages: how many.
        deadline_seconds: longest wait.
    """

    fills = True

    def __init__(self, lane: Host, stage: int, stages: int, deadline_seconds: float) -> None:
        self._lane = lane
        self._stage = stage
        self._stages = stages
        self._deadline_seconds = deadline_seconds

    def receive(self, number: int) -> list[mx.array]:  # noqa: ARG002  the lane keeps the order
        """See `Transfers.receive`."""
        with _with_stage(self._stage - 1):
            return self._lane.receive(self._stage - 1, self._deadline_seconds)

    def receive_into(self, number: int, arrays: Sequence[mx.array]) -> None:  # noqa: ARG002  same
        """See `Transfers.receive_into`."""
        with _with_stage(self._stage - 1):
            self._lane.receive_into(self._stage - 1, arrays, self._deadline_seconds)

    def send(self, number: int, arrays: Sequence[mx.array]) -> None:  # noqa: ARG002  same
        """See `Transfers.send`."""
        with _with_stage(self._stage + 1):
            self._lane.send(self._stage + 1, arrays, self._deadline_seconds)

    def send_result(self, done: lane_pb2.StepDone) -> None:
        """See `Transfers.send_result`."""
        with _with_stage(0):
            self._lane.send_message(0, done.SerializeToString(), self._deadline_seconds)

    def abort(self, reason: str) -> bool:
        """See `Transfers.abort`."""
        self._lane.abort(reason)
        return True

    def close(self) -> None:
        """See `Transfers.close`."""
        self._lane.close()

    def listen(self, put: Put) -> None:
        """See `Transfers.listen`."""
        # A daemon thread: it ends with the lane, and must not keep the process.
        threading.Thread(target=self._listen, args=(put,), name="results", daemon=True).start()

    def _listen(self, put: Put) -> None:
        try:
            while True:
                with _with_stage(self._stages - 1):
                    message = self._lane.receive_message(self._stages - 1, None)
                put(lane_pb2.StepDone.FromString(message))
        except DecodeError as error:
            put(RemoteScheduleError(f"the tail sent a result that is none: {error}"))
        except TransportError as error:
            put(error)


@contextlib.contextmanager
def _with_stage(stage: int) -> Iterator[None]:
    """Says in errors which stage it was; the lane knows ranks."""
    try:
        yield
    except TransportError as error:
        raise type(error)(f"stage {stage}: {error}", peer=error.peer, epoch=error.epoch) from error


def dtype_name(dtype: mx.Dtype) -> str:
    """Name of a type as it goes over the wire."""
    return str(dtype).rpartition(".")[2]


def dtype_of(name: str) -> mx.Dtype:
    """The type of a name.

    Raises:
        RemoteScheduleError: there is none.
    """
    dtype = getattr(mx, name, None)
    if not isinstance(dtype, mx.Dtype):
        raise RemoteScheduleError(
            f"the stage before hands on an array of type {name!r}, which MLX does not have"
        )
    return dtype
