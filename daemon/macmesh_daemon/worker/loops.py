"""What the inference thread does while the plan runs: the head's loop and that of all other stages."""

import dataclasses
import queue
import time
from collections.abc import Callable
from typing import Protocol

from macmesh.v1 import lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.requests import Effect, Refused, Release, Step
from macmesh_daemon.engine.scheduler import Scheduler
from macmesh_daemon.worker.convert import event_to_wire, request_from_wire, sampling_to_wire
from macmesh_daemon.worker.errors import RemoteNeighbourError

Item = (
    lane_pb2.SubmitRequest
    | lane_pb2.CancelRequest
    | lane_pb2.PingWorker
    | lane_pb2.StepHeader
    | lane_pb2.StepResult
    | lane_pb2.ReleaseSlot
)
"""What the rest of the worker hands to the inference thread."""


class Runner(Protocol):
    """What the loops need of a `StageRunner`."""

    def run(self, header: lane_pb2.StepHeader, tokens: tuple[int, ...] | None = None) -> lane_pb2.StepResult:
        """Runs one step."""

    def release(self, slot: int, request_id: str) -> None:
        """Frees a slot's caches."""

    def memory_bytes(self) -> tuple[int, int]:
        """Bytes that MLX holds, and the most that it held."""


@dataclasses.dataclass(frozen=True)
class Outlets:
    """Where the loops' messages go; every function may be called from any thread."""

    event: Callable[[lane_pb2.WorkerEvent], None]
    """To the daemon."""
    header: Callable[[lane_pb2.StepHeader], None]
    """To the next stage."""
    release: Callable[[lane_pb2.ReleaseSlot], None]
    """To the next stage."""
    result: Callable[[lane_pb2.StepResult], None]
    """To the head."""


class FollowerLoop:
    """The loop of every stage but the head: does what the head decided, in the order in which it comes."""

    def __init__(self, runner: Runner, outlets: Outlets, *, is_tail: bool) -> None:
        self._runner = runner
        self._outlets = outlets
        self._is_tail = is_tail
        self._steps = 0

    def run(self, inbox: "queue.SimpleQueue[Item]") -> None:
        """Runs until an error ends it."""
        while True:
            self.take(inbox.get())

    def take(self, item: Item) -> None:
        """Does one thing.

        Raises:
            RemoteScheduleError: the step does not fit, or this is nothing for a follower.
        """
        match item:
            case lane_pb2.StepHeader():
                result = self._runner.run(item)
                self._steps += 1
                if self._is_tail:
                    self._outlets.result(result)
            case lane_pb2.ReleaseSlot():
                self._runner.release(item.slot, item.request_id)
                if not self._is_tail:
                    self._outlets.release(item)
            case lane_pb2.PingWorker():
                self._outlets.event(pong(item, self._steps, self._runner))
            case lane_pb2.SubmitRequest():
                refused = Refused(item.request.request_id, "EPOCH_CHANGED", "only the head takes requests")
                self._outlets.event(event_to_wire(refused))
            case lane_pb2.CancelRequest():
                pass
            case lane_pb2.StepResult():
                raise RemoteScheduleError("a result came to a stage that is not the head")


class HeadLoop:
    """The loop of the head: asks the scheduler what to do next, and does it.

    Args:
        runner: the head's stage.
        scheduler: decides.
        outlets: where messages go.
        epoch: requests for another one are refused.
        is_tail: the plan has one stage.
        vocabulary_tokens: token ids must be below it; 0 where it is not known.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        outlets: Outlets,
        *,
        epoch: types_pb2.Epoch,
        is_tail: bool,
        vocabulary_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._outlets = outlets
        self._epoch = epoch
        self._is_tail = is_tail
        self._vocabulary_tokens = vocabulary_tokens
        self._clock = clock

    def run(self, inbox: "queue.SimpleQueue[Item]") -> None:
        """Runs until an error ends it."""
        while True:
            self.turn(inbox)

    def turn(self, inbox: "queue.SimpleQueue[Item]") -> None:
        """Runs a step, if one can run, and takes what has come; waits where there is nothing else to do.

        Raises:
            RemoteNeighbourError: a step's result is overdue.
            RemoteScheduleError: a result came that nobody waits for.
        """
        step = self._scheduler.next_step(self._clock())
        if step is not None:
            self._run(step)
        wait = step is None
        while True:
            item = self._get(inbox, wait=wait)
            if item is None:
                break
            self._take(item)
            wait = False
        overdue = self._scheduler.overdue(self._clock())
        if overdue is not None:
            raise RemoteNeighbourError(
                f"the result of step {overdue} is overdue: a stage hangs or is too slow"
            )

    def _get(self, inbox: "queue.SimpleQueue[Item]", *, wait: bool) -> Item | None:
        deadline = self._scheduler.next_deadline()
        timeout = None if deadline is None else max(0.0, deadline - self._clock())
        try:
            return inbox.get(wait, timeout)
        except queue.Empty:
            return None

    def _take(self, item: Item) -> None:
        match item:
            case lane_pb2.SubmitRequest():
                refusal = self._refusal(item.request)
                if refusal is not None:
                    self._outlets.event(event_to_wire(refusal))
                else:
                    self._carry_out(self._scheduler.submit(request_from_wire(item.request)))
            case lane_pb2.CancelRequest():
                self._carry_out(self._scheduler.cancel(item.request_id))
            case lane_pb2.PingWorker():
                self._outlets.event(pong(item, self._scheduler.steps, self._runner))
            case lane_pb2.StepResult():
                self._done(item)
            case lane_pb2.StepHeader() | lane_pb2.ReleaseSlot():
                raise RemoteScheduleError("a step came to the head, which gives them out")

    def _run(self, step: Step) -> None:
        header = lane_pb2.StepHeader(
            step=step.number,
            request_id=step.request_id,
            slot=step.slot,
            first=step.first,
            reserve_tokens=step.reserve_tokens,
            offset=step.offset,
            token_count=len(step.tokens),
            sample=step.sample,
            sampling=sampling_to_wire(step.sampling) if step.sample else None,
            sample_index=step.sample_index,
        )
        result = self._runner.run(header, step.tokens)
        if self._is_tail:
            self._done(result)

    def _done(self, result: lane_pb2.StepResult) -> None:
        token = result.token_id if result.has_token else None
        try:
            effects = self._scheduler.done(result.step, token, result.logprob)
        except ValueError as error:
            raise RemoteScheduleError(f"the tail and the head disagree: {error}") from error
        self._carry_out(effects)

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Release):
                self._runner.release(effect.slot, effect.request_id)
                if not self._is_tail:
                    released = lane_pb2.ReleaseSlot(slot=effect.slot, request_id=effect.request_id)
                    self._outlets.release(released)
            else:
                self._outlets.event(event_to_wire(effect))

    def _refusal(self, request: peer_pb2.RunRequestRequest) -> Refused | None:
        """What the scheduler cannot see."""
        if request.epoch != self._epoch:
            return Refused(
                request.request_id,
                "EPOCH_CHANGED",
                "the request was made for another plan than the one that is served now; ask again",
            )
        if request.sampling.temperature > 0 and not request.sampling.HasField("seed"):
            return Refused(request.request_id, "INVALID_ARGUMENT", "a request that samples needs a seed")
        largest = max(request.prompt_token_ids, default=0)
        if self._vocabulary_tokens and largest >= self._vocabulary_tokens:
            return Refused(
                request.request_id,
                "INVALID_ARGUMENT",
                f"token {largest} is not in the vocabulary of {self._vocabulary_tokens}",
            )
        return None


def pong(ping: lane_pb2.PingWorker, steps: int, runner: Runner) -> lane_pb2.WorkerEvent:
    """The answer to a ping, which proves that the loop turns."""
    active, peak = runner.memory_bytes()
    return lane_pb2.WorkerEvent(
        pong=lane_pb2.PongWorker(
            nonce=ping.nonce, steps=steps, active_memory_bytes=active, peak_memory_bytes=peak
        )
    )
