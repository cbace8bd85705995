"""A plan of one stage: decode runs one step ahead on the device. Imports mlx."""

import collections
import dataclasses

import mlx.core as mx

from macmesh_daemon.engine.caches import Caches
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.steps import Close, Operation, Row, Step, StepDone
from macmesh_daemon.worker.runner import House, Stage, StageRunner, common_source, sampled_of


@dataclasses.dataclass(slots=True)
class _Queued:
    """A step on the device."""

    number: int
    began: float
    chosen: tuple[mx.array, mx.array] | None
    """Token ids and logarithms; None: nothing was sampled, and the step is done."""
    seconds: float = 0.0


class LocalRunner(StageRunner):
    """The whole model in one process.

    A decode step takes the token that the one before chose from the device, so `begin` can queue a step before the
    token of the last one is known; `finish` reads it while the device works on.
    """

    def __init__(self, stage: Stage, house: House) -> None:
        super().__init__(stage, house)
        self._queued: collections.deque[_Queued] = collections.deque()
        # For each slot the token ids of its last decode step, and its row among them.
        self._chosen: dict[int, tuple[mx.array, int]] = {}
        self._last_end = 0.0

    @property
    def unfinished(self) -> int:
        """See `StageRunner.unfinished`."""
        return len(self._queued)

    def begin(self, step: Step) -> None:
        """See `StageRunner.begin`."""
        times = self.times
        began = times.lap(times.schedule)
        self._enter(step)
        queued = _Queued(step.number, began, None)
        if step.kind == "prefill":
            self._prefill(step)
            queued.seconds = times.lap(times.wait) - began
        elif step.kind == "decode":
            caches = self.house.caches_for(step)
            logits = self.stage.step([self._ids(step)], caches)[0]
            self.stage.openings.clear()  # a step ahead is on the device already, so nothing has to begin early
            times.lap(times.describe)
            queued.chosen = self._queue(step, logits, caches)
            for index, row in enumerate(step.rows):
                self._chosen[row.slot] = queued.chosen[0], index
        self._clear(step)
        self._queued.append(queued)

    def finish(self) -> StepDone:
        """See `StageRunner.finish`."""
        if not self._queued:
            raise LookupError("no step is unfinished")
        times = self.times
        times.lap(times.schedule)
        queued = self._queued.popleft()
        if queued.chosen is None:
            return StepDone(queued.number, (), queued.seconds)
        self._wait_for(queued.chosen)
        # It began on the device when it was queued, or when the step before it ended.
        ended = times.lap(times.wait)
        seconds = ended - max(queued.began, self._last_end)
        self._last_end = ended
        done = StepDone(queued.number, sampled_of(*queued.chosen), seconds)
        times.lap(times.sample)
        return done

    def _prefill(self, step: Step) -> None:
        """Runs a part of a prompt."""
        caches = self.house.caches_for(step)
        self.stage.step([mx.array([step.tokens], mx.uint32)], caches)
        # What the last layer puts out for a part of a prompt is never computed.
        self.stage.evaluate([], caches)

    def _queue(self, step: Step, logits: mx.array, caches: Caches) -> tuple[mx.array, mx.array]:
        """Puts a described decode step on the device; the ids that it chooses, and their logarithms."""
        ids, logprobs = self._choose(step, logits)
        self.times.lap(self.times.sample)
        mx.async_eval(ids, logprobs, caches.counters())  # type: ignore[no-untyped-call]  # the stub gives no types
        self.times.lap(self.times.encode)
        return ids, logprobs

    def _wait_for(self, chosen: tuple[mx.array, mx.array]) -> None:
        """Returns once a step on the device is done."""
        mx.eval(*chosen)

    def _apply(self, operation: Operation) -> None:
        super()._apply(operation)
        if isinstance(operation, Close):
            self._chosen.pop(operation.slot, None)

    def _ids(self, step: Step) -> mx.array:
        """The tokens of a decode step, shape (rows, 1)."""
        rows = step.rows
        if all(row.token is not None for row in rows):
            return mx.array([[row.token] for row in rows], mx.uint32)
        same = common_source(rows, self._chosen)
        if same is not None and same.shape[0] == len(rows):
            return same[:, None]
        return mx.concatenate([self._id(step, row) for row in rows])[:, None]

    def _id(self, step: Step, row: Row) -> mx.array:
        if row.token is not None:
            return mx.array([row.token], mx.uint32)
        chosen = self._chosen.get(row.slot)
        if chosen is None:
            raise RemoteScheduleError(
                f"step {step.number} goes on with what {row.request_id} sampled last, which was nothing"
            )
        ids, index = chosen
        return ids[index : index + 1]
