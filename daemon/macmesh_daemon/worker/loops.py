"""What the inference thread does while the plan runs: the head's loop and that of all other stages."""

import collections
import dataclasses
import queue
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from macmesh.v1 import lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.limits import SchedulerStats
from macmesh_daemon.engine.requests import Refused, Request
from macmesh_daemon.engine.steps import Step, StepDone
from macmesh_daemon.worker.convert import (
    TellableEffect,
    event_to_wire,
    request_from_wire,
    stats_to_wire,
)
from macmesh_daemon.worker.convert_steps import done_from_wire, step_from_wire, step_to_wire
from macmesh_daemon.worker.errors import RemoteNeighbourError
from macmesh_daemon.worker.pings import Pings
from macmesh_daemon.worker.step_times import StepTimes
from macmesh_rdma.messages.progress_page import ProgressWriter


@dataclasses.dataclass(frozen=True)
class Wake:
    """Makes the inference thread turn once, to answer pings."""


STEPS_QUEUED = 2
"""A follower has at most so many steps on its device."""
SETTLE_SECONDS = 0.25
"""A follower to which nothing comes for so long sees the steps that it queued through."""

Item = lane_pb2.SubmitRequest | lane_pb2.CancelRequest | lane_pb2.Step | lane_pb2.StepDone | Exception | Wake
"""What the rest of the worker hands to the inference thread; an exception ends it."""


class Runner(Protocol):
    """What the loops need of a `StageRunner`, which says what each of these promises."""

    times: StepTimes
    steps: int
    prompt_ahead: Callable[[], int | None]
    failed: Callable[[Exception], None]

    @property
    def unfinished(self) -> int:
        """Steps begun whose end `finish` gives."""

    def begin(self, step: Step) -> None:
        """Carries a step out, or queues it."""

    def finish(self) -> StepDone:
        """The end of the oldest unfinished step."""

    def take_result(self, done: StepDone) -> bool:
        """What the tail told of a step; True where `finish` gives it in its turn."""

    def holds_back(self, step: Step) -> bool:
        """Whether another step has to end before this one may be given out."""

    def prepare(self) -> bool:
        """Works ahead in idle time."""

    def memory_bytes(self) -> tuple[int, int]:
        """Bytes that MLX holds, and the most that it held."""


class Schedule(Protocol):
    """What the head's loop needs of a `Scheduler`."""

    @property
    def stats(self) -> SchedulerStats:
        """What was counted so far. From the thread that uses the schedule."""

    def submit(self, request: Request) -> "Sequence[TellableEffect]":
        """Takes a request."""

    def cancel(self, request_id: str) -> "Sequence[TellableEffect]":
        """Ends one."""

    def next_step(self, now: float) -> Step | None:
        """The next step, or None where none can run before a result comes."""

    def done(self, result: StepDone, now: float) -> "Sequence[TellableEffect]":
        """Takes a step's result. Raises ValueError where it is not the one that is due."""

    def next_deadline(self) -> float | None:
        """When the oldest step on its way is overdue."""

    def overdue(self, now: float) -> int | None:
        """A step whose result is overdue."""


@dataclasses.dataclass(frozen=True)
class Outlets:
    """Where the loops' messages go; every function may be called from any thread."""

    events: Callable[[Sequence[lane_pb2.WorkerEvent]], None]
    """To the daemon, together."""
    step: Callable[[lane_pb2.Step], None]
    """To the next stage."""
    payload: Callable[[lane_pb2.StepPayload], None]
    """To the next stage."""
    result: Callable[[lane_pb2.StepDone], None]
    """To the head."""


class FollowerLoop:
    """The loop of every stage but the head: does what the head decided, in the order in which it comes."""

    def __init__(
        self, runner: Runner, outlets: Outlets, pings: Pings, progress: ProgressWriter | None = None
    ) -> None:
        self._progress = progress or ProgressWriter()
        self._runner = runner
        self._outlets = outlets
        self._pings = pings
        # What was looked at before its turn.
        self._ahead: collections.deque[Item] = collections.deque()

    def run(self, inbox: "queue.SimpleQueue[Item]") -> None:
        """Runs until an error ends it."""
        times = self._runner.times
        self._runner.failed = inbox.put
        self._runner.prompt_ahead = lambda: self._prompt_ahead(inbox)
        while True:
            times.lap(times.schedule)
            self._progress.idle()
            try:
                timeout = SETTLE_SECONDS if self._runner.unfinished else None
                item = self._ahead.popleft() if self._ahead else inbox.get(timeout=timeout)
            except queue.Empty:
                # So that an error of theirs is noticed.
                self._settle(0)
                continue
            finally:
                self._progress.turn()
                times.lap(times.idle)
            self.take(item)

    def take(self, item: Item) -> None:
        """Does one thing.

        Raises:
            RemoteScheduleError: the step does not fit, or this is nothing for a follower.
        """
        match item:
            case lane_pb2.Step():
                self._progress.step(item.number)
                self._runner.begin(step_from_wire(item))
                self._settle(STEPS_QUEUED)
            case Wake() | lane_pb2.CancelRequest():
                pass
            case lane_pb2.SubmitRequest():
                refused = Refused(item.request.request_id, "EPOCH_CHANGED", "only the head takes requests")
                self._outlets.events([event_to_wire(refused)])
            case lane_pb2.StepDone():
                raise RemoteScheduleError("a result came to a stage that is not the head")
            case Exception():
                raise item
        self._pings.answer_all()

    def _prompt_ahead(self, inbox: "queue.SimpleQueue[Item]") -> int | None:
        while True:
            try:
                self._ahead.append(inbox.get_nowait())
            except queue.Empty:
                break
        for item in self._ahead:
            if isinstance(item, lane_pb2.Step) and item.kind != lane_pb2.STEP_KIND_OPERATIONS:
                return item.number if item.kind == lane_pb2.STEP_KIND_PREFILL else None
        return None

    def _settle(self, steps: int) -> None:
        """Waits until at most so many steps are on the device."""
        while self._runner.unfinished > steps:
            self._runner.finish()


class HeadLoop:
    """The loop of the head: asks the scheduler what to do next, and does it.

    What one turn has to tell to the daemon is told together, after the next step has been given out.

    Args:
        runner: the head's stage.
        scheduler: decides.
        outlets: where messages go.
        pings: to be answered at every turn.
        epoch: requests for another one are refused.
        is_tail: this stage samples.
        has_others: other stages run the same steps; None: where this one is not the tail.
        vocabulary_tokens: token ids must be below it; 0 where it is not known.
        progress: where this thread shows what it does.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Schedule,
        outlets: Outlets,
        pings: Pings,
        *,
        epoch: types_pb2.Epoch,
        is_tail: bool,
        has_others: bool | None = None,
        vocabulary_tokens: int = 0,
        progress: ProgressWriter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress or ProgressWriter()
        self._runner = runner
        self._scheduler = scheduler
        self._outlets = outlets
        self._pings = pings
        self._epoch = epoch
        self._is_tail = is_tail
        self._has_others = not is_tail if has_others is None else has_others
        self._vocabulary_tokens = vocabulary_tokens
        self._clock = clock
        self._untold: list[lane_pb2.WorkerEvent] = []

    def run(self, inbox: "queue.SimpleQueue[Item]") -> None:
        """Runs until an error ends it."""
        self._runner.failed = inbox.put
        while True:
            self.turn(inbox)

    def turn(self, inbox: "queue.SimpleQueue[Item]") -> None:
        """Gives out what can run now and takes what has come; waits where there is nothing else to do.

        Raises:
            RemoteNeighbourError: a step's result is overdue.
            RemoteScheduleError: a result came that nobody waits for.
        """
        while (step := self._scheduler.next_step(self._clock())) is not None:
            if not self._begin(step, inbox):
                break
        self._tell()
        self._pings.answer_all()
        self._end_one(inbox)

    def _end_one(self, inbox: "queue.SimpleQueue[Item]") -> None:
        """Takes the end of the oldest step where it is due here; else waits for what comes."""
        if self._runner.unfinished:
            # The device has the next step already: reading the last one's tokens delays nothing.
            self._progress.turn()
            self._done(self._runner.finish())
            self._take_all(inbox)
        elif not inbox.empty() or not self._runner.prepare():
            self._wait(inbox)
        overdue = self._scheduler.overdue(self._clock())
        if overdue is not None:
            raise RemoteNeighbourError(
                f"the result of step {overdue} is overdue: a stage hangs or is too slow"
            )

    def _begin(self, step: Step, inbox: "queue.SimpleQueue[Item]") -> bool:
        """Runs a step; False where something came that should be looked at before the next one."""
        while self._runner.holds_back(step):
            # The other stages must not know of it before, or they would wait for it on their devices.
            self._tell()
            self._pings.answer_all()
            self._end_one(inbox)
        if self._has_others:
            self._outlets.step(step_to_wire(step))
        if step.kind == "prefill":
            # It keeps this thread for long: what is known before it is told before it. What other stages still
            # have to do is not waited for, or this one would idle meanwhile.
            while self._is_tail and self._runner.unfinished:
                self._done(self._runner.finish())
            self._tell()
        self._progress.step(step.number)
        self._runner.begin(step)
        return inbox.empty()

    def _wait(self, inbox: "queue.SimpleQueue[Item]") -> None:
        times = self._runner.times
        deadline = self._scheduler.next_deadline()
        timeout = None if deadline is None else max(0.0, deadline - self._clock())
        times.lap(times.schedule)
        self._progress.idle()
        try:
            item = inbox.get(timeout=timeout)
        except queue.Empty:
            return
        finally:
            self._progress.turn()
            times.lap(times.idle)
        self._take(item)
        self._take_all(inbox)

    def _take_all(self, inbox: "queue.SimpleQueue[Item]") -> None:
        while True:
            try:
                item = inbox.get_nowait()
            except queue.Empty:
                return
            self._take(item)

    def _take(self, item: Item) -> None:
        match item:
            case lane_pb2.SubmitRequest():
                refusal = self._refusal(item.request)
                if refusal is not None:
                    self._untold.append(event_to_wire(refusal))
                else:
                    self._note(self._scheduler.submit(request_from_wire(item.request)))
            case lane_pb2.CancelRequest():
                self._note(self._scheduler.cancel(item.request_id))
            case lane_pb2.StepDone():
                done = done_from_wire(item)
                if not self._runner.take_result(done):
                    self._done(done)
            case Wake():
                pass
            case lane_pb2.Step():
                raise RemoteScheduleError("a step came to the head, which gives them out")
            case Exception():
                raise item

    def _done(self, done: StepDone) -> None:
        try:
            self._note(self._scheduler.done(done, self._clock()))
        except ValueError as error:
            raise RemoteScheduleError(f"the tail and the head disagree: {error}") from error

    def _note(self, effects: "Sequence[TellableEffect]") -> None:
        self._untold.extend(event_to_wire(effect) for effect in effects)

    def _tell(self) -> None:
        if self._untold:
            untold, self._untold = self._untold, []
            self._outlets.events(untold)

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
        if 0 < request.max_tokens <= len(request.generated_token_ids):
            return Refused(
                request.request_id,
                "INVALID_ARGUMENT",
                f"{len(request.generated_token_ids)} tokens of at most {request.max_tokens} are there already",
            )
        largest = max((*request.prompt_token_ids, *request.generated_token_ids), default=0)
        if self._vocabulary_tokens and largest >= self._vocabulary_tokens:
            return Refused(
                request.request_id,
                "INVALID_ARGUMENT",
                f"token {largest} is not in the vocabulary of {self._vocabulary_tokens}",
            )
        return None


def pong(
    ping: lane_pb2.PingWorker, runner: Runner, stats: SchedulerStats | None = None
) -> lane_pb2.WorkerEvent:
    """The answer to a ping. May be called from any thread.

    Args:
        ping: the question.
        runner: of the stage.
        stats: at the head, what its schedule counted.
    """
    active, peak = runner.memory_bytes()
    return lane_pb2.WorkerEvent(
        pong=lane_pb2.PongWorker(
            nonce=ping.nonce,
            steps=runner.steps,
            active_memory_bytes=active,
            peak_memory_bytes=peak,
            times=runner.times.to_wire(),
            scheduler=None if stats is None else stats_to_wire(stats),
        )
    )
