"""One of several stages, with decode steps that are queued on the device one ahead. Imports mlx.

A decode step is one graph: receive, layers, send. It is queued before the stage before has computed its part, and at
the head before the last token is known there: the tail sends what it samples straight into the head's next step.

A GPU that waits for another stage is stopped by macOS after some seconds, so a step may wait on the device only for
other decode steps, which are short:

* Each stage takes the steps one after the other, and the host waits for a part of a prompt, so nothing is queued behind
  one that the stage before still computes.
* The head gives a decode step out only once all prompts are through that the tail has to do before it samples what the
  step begins with (`GraphHeadRunner.holds_back`). The others learn of the step after that.
"""

import collections
import contextlib
import dataclasses
import struct
from typing import cast

import mlx.core as mx

from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.steps import Close, Operation, Row, Sampled, Step, StepDone
from macmesh_daemon.worker.beside import Waiting
from macmesh_daemon.worker.graph_transfers import GraphTransfers
from macmesh_daemon.worker.piped_runner import FollowerRunner, HeadRunner, contiguous
from macmesh_daemon.worker.runner import House, Stage, common_source
from macmesh_daemon.worker.transfers import dtype_of
from macmesh_rdma.graph_lane import Facts

SAMPLED_DTYPE = mx.uint32
"""Token ids, and the bits of their logarithms."""


def pack(ids: mx.array, logprobs: mx.array) -> mx.array:
    """What the tail sends to the head: shape (2, rows), ids and the bits of the logarithms."""
    bits = mx.view(logprobs.astype(mx.float32), SAMPLED_DTYPE)
    return mx.stack([ids.astype(SAMPLED_DTYPE), bits])


def sampled_in(packed: mx.array) -> tuple[Sampled, ...]:
    """What was packed, as plain data, without any work for the device; waits for it."""
    ids, bits = cast("list[list[int]]", packed.tolist())
    return sampled_from(struct.pack(f"={2 * len(ids)}I", *ids, *bits))


def sampled_from(content: bytes) -> tuple[Sampled, ...]:
    """The same from the bytes of what was packed."""
    rows = len(content) // 8
    values = struct.unpack(f"={rows}I{rows}f", content)
    return tuple(map(Sampled, values[:rows], values[rows:]))


def sampled_facts(rows: int) -> Facts:
    """What comes from the tail for a step."""
    return (2, rows), SAMPLED_DTYPE


@dataclasses.dataclass(slots=True, eq=False)
class _Begun:
    """A step whose end the head has not told."""

    step: Step
    done: StepDone | None = None
    """Of a step that samples nothing, once the tail has told its end."""
    packed: mx.array | None = None
    """Of a decode step, what comes from the tail; None until somebody needs it."""
    payload: int = 0
    """Which of the tail's payloads that is, counted from 1."""

    @property
    def decodes(self) -> bool:
        return self.step.kind == "decode"


class GraphHeadRunner(HeadRunner):
    """The head of several stages.

    Args:
        stage: the model's part.
        house: its caches.
        transfers: to the next stage, and from the tail.
        waiting: entered while it may wait for another stage.
    """

    def __init__(
        self,
        stage: Stage,
        house: House,
        transfers: GraphTransfers,
        *,
        waiting: Waiting = contextlib.nullcontext,
    ) -> None:
        super().__init__(stage, house, transfers, waiting=waiting)
        self._way = transfers
        self._waiting = waiting
        self._begun: collections.deque[_Begun] = collections.deque()
        # For each slot the decode step that sampled its last token, and its row there.
        self._source: dict[int, tuple[_Begun, int]] = {}
        # What was described of the tail's and has not been given to the device.
        self._fresh: list[mx.array] = []
        self._payloads = 0

    @property
    def unfinished(self) -> int:
        """Steps whose ends `finish` gives now: until the first that the tail has not told of."""
        count = 0
        for begun in self._begun:
            if not begun.decodes and begun.done is None:
                break
            count += 1
        return count

    def holds_back(self, step: Step) -> bool:
        """See `StageRunner.holds_back`: a prompt is before the token that the step begins with."""
        needed = [
            source[0].step.number
            for row in step.rows
            if step.kind == "decode" and row.token is None and (source := self._source.get(row.slot))
        ]
        newest = max(needed, default=0)
        return any(
            begun.step.kind == "prefill" and begun.done is None and begun.step.number < newest
            for begun in self._begun
        )

    def begin(self, step: Step) -> None:
        """See `StageRunner.begin`."""
        with self._way.graph.guarded():
            if step.kind == "decode":
                self._queue(step)
            else:
                super().begin(step)
                self._begun.append(_Begun(step))

    def finish(self) -> StepDone:
        """See `StageRunner.finish`."""
        if not self.unfinished:
            raise LookupError("no step is unfinished")
        times = self.times
        begun = self._begun[0]
        if begun.done is not None:
            self._begun.popleft()
            return begun.done
        times.lap(times.schedule)
        packed = self._packed(begun)
        with self._waiting(), self._way.graph.guarded():
            content = self._way.graph.read(self._way.previous, begun.payload, packed.nbytes)
            if content is None:
                mx.eval(packed)
                self._fresh.clear()
        times.lap(times.wait)
        self._begun.popleft()
        sampled = sampled_in(packed) if content is None else sampled_from(content)
        done = StepDone(begun.step.number, sampled)
        times.lap(times.sample)
        return done

    def take_result(self, done: StepDone) -> bool:
        """See `StageRunner.take_result`; `finish` gives it in its turn."""
        for begun in self._begun:
            if begun.step.number == done.number and not begun.decodes and begun.done is None:
                if done.sampled:
                    break
                begun.done = done
                return True
        raise RemoteScheduleError(f"the tail told the end of step {done.number}, which nobody waits for")

    def prepare(self) -> bool:
        """Nothing: steps are queued ahead already."""
        return False

    def _enter(self, step: Step) -> None:
        # Operations may have to wait for steps that are queued, and these for other stages.
        with self._waiting() if step.operations and self._begun else contextlib.nullcontext():
            super()._enter(step)

    def _queue(self, step: Step) -> None:
        times = self.times
        times.lap(times.schedule)
        self._enter(step)
        ids = self._ids(step)
        caches = self.house.caches_for(step)
        outputs = contiguous(self.stage.step([ids], caches))
        self.stage.openings.clear()  # the device has work already, or waits for the tail
        sent = self._way.graph.send(self._way.next, outputs)
        begun = _Begun(step)
        for index, row in enumerate(step.rows):
            self._source[row.slot] = begun, index
        times.lap(times.describe)
        # The host cannot encode far ahead of what the device has done.
        with self._waiting():
            if self._fresh and self._way.graph.reads_apart:
                mx.async_eval(*self._fresh)  # type: ignore[no-untyped-call]  # the stub gives no types
            self._fresh.clear()
            mx.async_eval(sent, caches.counters())  # type: ignore[no-untyped-call]  # the stub gives no types
        times.lap(times.encode)
        self._begun.append(begun)
        self._clear(step)

    def _apply(self, operation: Operation) -> None:
        super()._apply(operation)
        if isinstance(operation, Close):
            self._source.pop(operation.slot, None)

    def _packed(self, wanted: _Begun) -> mx.array:
        """What comes from the tail for a step; the receives are described in the order of the steps."""
        if wanted.packed is None:
            for begun in self._begun:
                if begun.decodes and begun.packed is None:
                    (begun.packed,) = self._way.graph.receive(
                        self._way.previous, [sampled_facts(len(begun.step.rows))]
                    )
                    self._payloads += 1
                    begun.payload = self._payloads
                    self._fresh.append(begun.packed)
                if begun is wanted:
                    break
        if wanted.packed is None:
            raise RemoteScheduleError(f"what step {wanted.step.number} sampled is not known here any more")
        return wanted.packed

    def _ids(self, step: Step) -> mx.array:
        """The tokens of a decode step, shape (rows, 1)."""
        rows = step.rows
        if all(row.token is not None for row in rows):
            return mx.array([[row.token] for row in rows], mx.uint32)
        same = common_source(rows, self._source)
        if same is not None and len(same.step.rows) == len(rows):
            return self._within(self._packed(same)[0])[:, None]
        return mx.concatenate([self._id(step, row) for row in rows])[:, None]

    def _id(self, step: Step, row: Row) -> mx.array:
        if row.token is not None:
            return mx.array([row.token], mx.uint32)
        source = self._source.get(row.slot)
        if source is None:
            raise RemoteScheduleError(
                f"step {step.number} goes on with what {row.request_id} sampled last, which was nothing"
            )
        begun, index = source
        return self._within(self._packed(begun)[0, index : index + 1])

    def _within(self, ids: mx.array) -> mx.array:
        """A receive that fails leaves anything behind, and rows are looked up by it before the host learns of that."""
        return mx.minimum(ids, mx.array(self.stage.vocab_size - 1, SAMPLED_DTYPE))


class GraphFollowerRunner(FollowerRunner):
    """Every stage but the head.

    Args:
        stage: the model's part.
        house: its caches.
        transfers: to the stages beside it.
        waiting: entered while it may wait for another stage.
    """

    def __init__(
        self,
        stage: Stage,
        house: House,
        transfers: GraphTransfers,
        *,
        waiting: Waiting = contextlib.nullcontext,
    ) -> None:
        super().__init__(stage, house, transfers, waiting=waiting)
        self._way = transfers
        self._queued: collections.deque[tuple[int, mx.array]] = collections.deque()

    @property
    def unfinished(self) -> int:
        """See `StageRunner.unfinished`."""
        return len(self._queued)

    def begin(self, step: Step) -> None:
        """See `StageRunner.begin`."""
        with self._way.graph.guarded():
            if step.kind == "decode":
                self._queue(step)
                return
            # Computed, or done, at once: what is queued comes first, on the device and on the links.
            while self._queued:
                self.finish()
            super().begin(step)

    def finish(self) -> StepDone:
        """See `StageRunner.finish`; what was sampled is told by the graph."""
        if not self._queued:
            raise LookupError("no step is unfinished")
        self.times.lap(self.times.schedule)
        number, sent = self._queued.popleft()
        with self._waiting(), self._way.graph.guarded():
            mx.eval(sent)
        self.times.lap(self.times.wait)
        return StepDone(number)

    def _enter(self, step: Step) -> None:
        with self._waiting() if step.operations and self._queued else contextlib.nullcontext():
            super()._enter(step)

    def _queue(self, step: Step) -> None:
        times = self.times
        times.lap(times.schedule)
        self._enter(step)
        facts = self.stage.payload_facts(len(step.rows), 1)
        if facts is None:
            raise RemoteScheduleError(
                f"what step {step.number} hands on is not known beforehand, so no graph can begin with it"
            )
        graph = self._way.graph
        inputs = graph.receive(
            self._way.previous, [(tuple(fact.shape), dtype_of(fact.dtype)) for fact in facts]
        )
        caches = self.house.caches_for(step)
        outputs = self.stage.step(inputs, caches)
        self.stage.openings.clear()
        times.lap(times.describe)
        outputs = [pack(*self._choose(step, outputs[0]))] if self.stage.is_tail else contiguous(outputs)
        times.lap(times.sample)
        sent = graph.send(self._way.next, outputs)
        with self._waiting():
            mx.async_eval(sent, inputs, caches.counters())  # type: ignore[no-untyped-call]  # the stub gives no types
        times.lap(times.encode)
        self._queued.append((step.number, sent))
        self._clear(step)
