"""One of several stages, with arrays that the host hands on. Imports mlx.

A decode step is described while the stage before still computes it, on an array whose memory is filled when it comes:
describing costs the host milliseconds, and nothing is known of a step beforehand but its shape. The head describes the
step that will probably be next, and takes that back where the schedule decides otherwise.

A part of a prompt goes to the next stage while the part behind it is computed, and is taken in there while the part
before it is.
"""

import contextlib
import dataclasses
import time
from collections.abc import Sequence

import mlx.core as mx

from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.steps import Close, Compose, Operation, Row, Sampled, Step, StepDone
from macmesh_daemon.worker.beside import Receiver, Sender, Waiting
from macmesh_daemon.worker.convert_steps import done_to_wire
from macmesh_daemon.worker.runner import (
    Facts,
    House,
    Snapshot,
    Stage,
    StageRunner,
    is_concerned,
    key_of,
    sampled_of,
)
from macmesh_daemon.worker.transfers import Transfers, dtype_of

Key = tuple[str, int]


@dataclasses.dataclass(slots=True)
class _Ahead:
    """A decode step that was described before the schedule gave it out."""

    step: Step
    ids: mx.array
    outputs: list[mx.array]
    counters: list[mx.array]
    openings: list[mx.array]
    snapshot: Snapshot


class FollowerRunner(StageRunner):
    """Every stage but the head.

    Args:
        stage: the model's part.
        house: its caches.
        transfers: to the stages beside it.
        waiting: entered while it waits for another stage.
    """

    def __init__(
        self, stage: Stage, house: House, transfers: Transfers, *, waiting: Waiting = contextlib.nullcontext
    ) -> None:
        super().__init__(stage, house)
        self._transfers = transfers
        self._waiting = waiting
        self._sender = Sender(transfers, waiting, self.tell_failure)
        self._receiver = Receiver(transfers, waiting)
        self._tell_layer = stage.layer_done
        stage.layer_done = self._layer_done
        # Two for each group of rows, in turn: what a step has not computed yet may still read its input.
        self._placeholders: dict[Key, list[list[mx.array]]] = {}
        # Of the step described last.
        self._counters: list[mx.array] = []
        self._openings: list[mx.array] = []

    def begin(self, step: Step) -> None:
        """See `StageRunner.begin`; at the tail the head has been told when this returns."""
        times = self.times
        times.lap(times.schedule)
        self._enter(step)
        outputs: list[mx.array] = []
        if step.kind == "prefill":
            outputs, began = self._prefill(step)
        elif step.kind == "decode":
            outputs, began = self._decode(step)
        else:
            began = time.perf_counter()
        if not self.stage.is_tail:
            if step.kind == "prefill":
                self._sender.send_beside(step.number, outputs)
            elif step.kind == "decode":
                self._sender.send(step.number, outputs)
            times.lap(times.send)
        else:
            busy = time.perf_counter() - began
            sampled: tuple[Sampled, ...] = ()
            if step.kind == "decode":
                sampled = sampled_of(outputs[0], outputs[1])
                times.lap(times.sample)
            with self._waiting():
                self._transfers.send_result(done_to_wire(StepDone(step.number, sampled, busy)))
            times.lap(times.send)
        self._clear(step)

    def close(self) -> None:
        """See `StageRunner.close`."""
        self._sender.close()
        self._receiver.close()

    def _layer_done(self, index: int) -> None:
        """Between two layers of a prompt: the host has the time to see what comes next."""
        self._tell_layer(index)
        if not self._receiver.ahead:
            number = self.prompt_ahead()
            if number is not None:
                self._receiver.receive_ahead(number)

    def _prefill(self, step: Step) -> tuple[list[mx.array], float]:
        inputs = self._receiver.receive(step.number)
        began = self.times.lap(self.times.receive)
        self._require_fit(step, inputs)
        caches = self.house.caches_for(step)
        outputs = self.stage.step(inputs, caches)
        del inputs
        if self.stage.is_tail:
            # What the last layer puts out for a part of a prompt is never computed.
            outputs = []
        outputs = contiguous(outputs)
        self.stage.evaluate(outputs, caches)
        self.times.lap(self.times.wait)
        return outputs, began

    def _decode(self, step: Step) -> tuple[list[mx.array], float]:
        times = self.times
        facts = self.stage.payload_facts(len(step.rows), 1) if self._transfers.fills else None
        if facts is None:
            with self._waiting():
                inputs = self._transfers.receive(step.number)
            began = times.lap(times.receive)
            self._require_fit(step, inputs)
            outputs = self._describe(step, inputs)
        else:
            inputs = self._placeholder(step, facts)
            outputs = self._describe(step, inputs)
            with self._waiting():
                self._transfers.receive_into(step.number, inputs)
            began = times.lap(times.receive)
        queue(self._openings, outputs, self._counters)
        times.lap(times.encode)
        mx.eval(outputs)
        times.lap(times.wait)
        return outputs, began

    def _describe(self, step: Step, inputs: list[mx.array]) -> list[mx.array]:
        caches = self.house.caches_for(step)
        outputs = self.stage.step(inputs, caches)
        self._counters, self._openings = caches.counters(), self.stage.openings
        self.times.lap(self.times.describe)
        if self.stage.is_tail:
            outputs = list(self._choose(step, outputs[0]))
            self.times.lap(self.times.sample)
            return outputs
        return contiguous(outputs)

    def _placeholder(self, step: Step, facts: Sequence[Facts]) -> list[mx.array]:
        """Arrays of these shapes, evaluated and held here, so that MLX uses their memory for nothing else."""
        pair = self._placeholders.setdefault(key_of(step), [])
        fitting = [
            arrays
            for arrays in pair
            if len(arrays) == len(facts)
            and all(
                tuple(array.shape) == tuple(fact.shape) and array.dtype == dtype_of(fact.dtype)
                for array, fact in zip(arrays, facts, strict=True)
            )
        ]
        if len(fitting) < len(pair):
            pair[:] = fitting
        if len(pair) < 2:  # noqa: PLR2004  two in turn
            arrays = [mx.zeros(fact.shape, dtype_of(fact.dtype)) for fact in facts]
            mx.eval(arrays)
            pair.append(arrays)
            return arrays
        pair.reverse()
        return pair[1]

    def _apply(self, operation: Operation) -> None:
        super()._apply(operation)
        match operation:
            case Close(slot):
                self._placeholders.pop(("slot", slot), None)
            case Compose(batch):
                self._placeholders.pop(("batch", batch), None)

    def _require_fit(self, step: Step, inputs: list[mx.array]) -> None:
        """Compares what came, where shapes are known beforehand."""
        facts = self.stage.payload_facts(len(step.rows), step.token_count)
        expected = None if facts is None else [tuple(fact.shape) for fact in facts]
        if expected is not None and expected != [tuple(array.shape) for array in inputs]:
            raise RemoteScheduleError(
                f"the stage before hands on arrays of shapes {[tuple(array.shape) for array in inputs]} in step "
                f"{step.number} of {len(step.rows)} x {step.token_count} tokens, which needs {expected}"
            )


class HeadRunner(StageRunner):
    """The head of several stages.

    Args:
        stage: the model's part.
        house: its caches.
        transfers: to the next stage.
        waiting: entered while it waits for the next stage.
    """

    def __init__(
        self, stage: Stage, house: House, transfers: Transfers, *, waiting: Waiting = contextlib.nullcontext
    ) -> None:
        super().__init__(stage, house)
        self._sender = Sender(transfers, waiting, self.tell_failure)
        self._tokens: dict[int, int] = {}
        # Rows of decode steps whose results have not come.
        self._outstanding: dict[int, tuple[Row, ...]] = {}
        self._last: dict[Key, Step] = {}
        self._ahead: dict[Key, _Ahead] = {}

    def close(self) -> None:
        """See `StageRunner.close`."""
        self._sender.close()

    def begin(self, step: Step) -> None:
        """See `StageRunner.begin`; a part of a prompt may still be on its way to the next stage when this returns."""
        times = self.times
        times.lap(times.schedule)
        if step.operations:
            self._forget(step)
        self._enter(step)
        if step.kind == "operations":
            return
        if step.kind == "prefill":
            self._sender.send_beside(step.number, self._prefill(step))
        else:
            self._sender.send(step.number, self._decode(step))
        times.lap(times.send)
        self._clear(step)

    def take_result(self, done: StepDone) -> bool:
        """See `StageRunner.take_result`."""
        rows = self._outstanding.pop(done.number, ())
        if len(rows) != len(done.sampled):
            raise RemoteScheduleError(
                f"{len(done.sampled)} tokens came for the {len(rows)} rows of step {done.number}"
            )
        for row, sampled in zip(rows, done.sampled, strict=True):
            if row.slot in self._samplings:
                self._tokens[row.slot] = sampled.token
        return False

    def prepare(self) -> bool:
        """Describes the next step of a group of rows, as it will be if nothing changes."""
        for key, last in self._last.items():
            if key in self._ahead:
                continue
            rows = tuple(
                dataclasses.replace(row, offset=row.offset + 1, token=None, sample_index=row.sample_index + 1)
                for row in last.rows
            )
            if any(row.offset >= self._reserve_tokens.get(row.slot, 0) for row in rows):
                continue
            self.times.lap(self.times.schedule)
            expected = Step(number=0, kind="decode", rows=rows, batch=last.batch)
            snapshot = self.house.snapshot(expected)
            ids = mx.array([[0]] * len(rows), mx.uint32)
            caches = self.house.caches_for(expected)
            outputs = contiguous(self.stage.step([ids], caches))
            self._ahead[key] = _Ahead(
                expected, ids, outputs, caches.counters(), self.stage.openings, snapshot
            )
            self.times.lap(self.times.describe)
            return True
        return False

    def _prefill(self, step: Step) -> list[mx.array]:
        caches = self.house.caches_for(step)
        outputs = contiguous(self.stage.step([mx.array([step.tokens], mx.uint32)], caches))
        self.stage.evaluate(outputs, caches)
        self.times.lap(self.times.wait)
        return outputs

    def _decode(self, step: Step) -> list[mx.array]:
        times = self.times
        tokens = [self._token(step, row) for row in step.rows]
        described = self._take_ahead(step, tokens)
        if described is None:
            ids = mx.array([[token] for token in tokens], mx.uint32)
            caches = self.house.caches_for(step)
            outputs = contiguous(self.stage.step([ids], caches))
            counters, openings = caches.counters(), self.stage.openings
        else:
            outputs, counters, openings = described.outputs, described.counters, described.openings
            # While it lives, so does the snapshot, and an array that two hold is copied where it is changed.
            del described
        self._last[key_of(step)] = step
        self._outstanding[step.number] = step.rows
        times.lap(times.describe)
        queue(openings, outputs, counters)
        times.lap(times.encode)
        mx.eval(outputs)
        times.lap(times.wait)
        return outputs

    def _take_ahead(self, step: Step, tokens: list[int]) -> _Ahead | None:
        """The step as it was described ahead, with its tokens; None where it was not."""
        key = key_of(step)
        ahead = self._ahead.pop(key, None)
        if ahead is None:
            return None
        if tuple(dataclasses.replace(row, token=None) for row in step.rows) != ahead.step.rows:
            ahead.snapshot.restore()
            self.times.ahead_dropped += 1
            return None
        memory = memoryview(ahead.ids)  # type: ignore[arg-type]  # the stub omits the buffer protocol
        for index, token in enumerate(tokens):
            memory[index, 0] = token
        self.times.ahead_used += 1
        return ahead

    def _forget(self, step: Step) -> None:
        """Takes back what was described of rows that change now."""
        for key, last in list(self._last.items()):
            if any(is_concerned(operation, last) for operation in step.operations):
                del self._last[key]
                ahead = self._ahead.pop(key, None)
                if ahead is not None:
                    ahead.snapshot.restore()
                    self.times.ahead_dropped += 1

    def _apply(self, operation: Operation) -> None:
        super()._apply(operation)
        if isinstance(operation, Close):
            self._tokens.pop(operation.slot, None)

    def _token(self, step: Step, row: Row) -> int:
        token = self._tokens.get(row.slot) if row.token is None else row.token
        if token is None:
            raise RemoteScheduleError(
                f"step {step.number} goes on with what {row.request_id} sampled last, which is not known here"
            )
        return token


def queue(openings: list[mx.array], outputs: list[mx.array], counters: list[mx.array]) -> None:
    """Puts a step on the device, its first layers before the host has encoded the others."""
    for opening in openings:
        mx.async_eval(opening)  # type: ignore[no-untyped-call]  # the stub gives no types
    openings.clear()
    mx.async_eval(outputs, counters)  # type: ignore[no-untyped-call]  # same


def contiguous(arrays: list[mx.array]) -> list[mx.array]:
    """The arrays as their memory goes over a lane; those that lie so already are not copied."""
    return [mx.contiguous(array) for array in arrays]
