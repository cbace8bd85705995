"""Small parts of an engine for tests of the worker alone: plain caches, requests one after the other."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

from macmesh.v1 import lane_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.requests import Cancelled, Finish, Generated, Request
from macmesh_daemon.engine.stage import StageModel, load_stage
from macmesh_daemon.engine.steps import Close, Compose, Open, Operation, Row, Step, StepDone
from macmesh_daemon.worker.parts import Parts, Progress

_KV: Any = KVCache
_BATCH: Any = BatchKVCache


class _Rows(_BATCH):  # type: ignore[misc]  # mlx-lm is not typed
    """Takes the keys of a layer of another stage too, which come as those of one row."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        if keys.shape[-1] == 0:
            keys = values = mx.zeros((self.offset.shape[0], 1, keys.shape[2], 0))
        return super().update_and_fetch(keys, values)


@dataclasses.dataclass
class PlainCaches:
    """Plain caches of a request, or of the rows of a batch; they grow as mlx-lm's do."""

    entries: list[Any]
    owned: tuple[int, ...]
    length: int = 0
    """Tokens in it; of a batch those of its longest row."""

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def require_room(self, tokens: int) -> None:
        """Any number fits."""

    def arrays_at(self, indices: Sequence[int]) -> list[mx.array]:
        return [
            array for index in indices for array in self.entries[index].state if isinstance(array, mx.array)
        ]

    def copy_states(self, indices: Sequence[int]) -> None:
        """There are none."""

    def owned_arrays(self) -> list[mx.array]:
        return self.arrays_at(self.owned)


class ListStage:
    """A `StageModel` whose inputs and outputs are lists."""

    def __init__(self, model: StageModel, hidden: int, layers: int) -> None:
        self.model, self.hidden, self.layers = model, hidden, layers
        self.is_head, self.is_tail, self.architecture = model.is_head, model.is_tail, model.architecture

    def make_caches(self, reserve_tokens: int = 0) -> PlainCaches:
        del reserve_tokens  # they grow
        return PlainCaches([_KV() for _ in range(self.layers)], tuple(self.model.layers))

    def step(self, inputs: list[mx.array], caches: PlainCaches) -> list[mx.array]:
        model: Any = self.model
        outputs: list[mx.array] = (
            model.step(inputs, caches) if hasattr(model, "payload_facts") else [model.step(inputs[0], caches)]
        )
        return outputs

    def evaluate(self, results: list[mx.array], caches: PlainCaches) -> None:
        mx.eval(results, caches.owned_arrays())

    def payload_facts(self, rows: int, tokens: int) -> "list[Facts]":
        return [Facts((rows, tokens, self.hidden), "bfloat16")]


@dataclasses.dataclass(frozen=True)
class Facts:
    shape: tuple[int, ...]
    dtype: str


class PlainSnapshot:
    """Entries as they were: aliases of their arrays, and the rest of what they hold."""

    def __init__(self, caches: PlainCaches) -> None:
        self._caches, self._length = caches, caches.length
        self._states = [
            {
                name: value[...] if isinstance(value, mx.array) else value
                for name, value in vars(entry).items()
            }
            for entry in caches.entries
        ]

    def restore(self) -> None:
        self._caches.length = self._length
        for entry, state in zip(self._caches.entries, self._states, strict=True):
            vars(entry).update(state)


@dataclasses.dataclass
class _Held:
    request_id: str
    caches: PlainCaches | None
    length: int = 0


class PlainHouse:
    """Slots and batches of plain caches; what is kept is refused."""

    def __init__(self, stage: ListStage, slots: int) -> None:
        self._stage, self._slots = stage, slots
        self._held: dict[int, _Held] = {}
        self._batches: dict[int, tuple[list[int], PlainCaches]] = {}

    def apply(self, operation: Operation) -> None:
        match operation:
            case Open(slot, request_id, reserve_tokens, _, _, reuse):
                if slot in self._held or slot >= self._slots or reserve_tokens == 0 or reuse is not None:
                    raise RemoteScheduleError(f"slot {slot} is not free for {request_id}")
                self._held[slot] = _Held(request_id, self._stage.make_caches())
            case Close(slot, request_id, keep_as):
                if slot not in self._held or self._held[slot].request_id != request_id or keep_as is not None:
                    raise RemoteScheduleError(f"slot {slot} is not {request_id}'s")
                del self._held[slot]
            case Compose(batch, slots):
                self._compose(batch, list(slots))
            case _:
                raise RemoteScheduleError("nothing is kept here")

    def caches_for(self, step: Step) -> PlainCaches:
        for row in step.rows:
            held = self._held.get(row.slot)
            if held is None or held.request_id != row.request_id or held.length != row.offset:
                raise RemoteScheduleError(
                    f"step {step.number} goes on at token {row.offset} of {row.request_id} in slot {row.slot}"
                )
            held.length += step.token_count
        if step.batch is None:
            caches = self._held[step.rows[0].slot].caches
            assert caches is not None
            return caches
        slots, caches = self._batches[step.batch]
        assert slots == [row.slot for row in step.rows]
        return caches

    def snapshot(self, step: Step) -> "_Undo":
        lengths = {row.slot: self._held[row.slot].length for row in step.rows}
        caches = self._held[step.rows[0].slot].caches if step.batch is None else self._batches[step.batch][1]
        assert caches is not None
        return _Undo(PlainSnapshot(caches), lambda: self._reset(lengths))

    def _reset(self, lengths: dict[int, int]) -> None:
        for slot, length in lengths.items():
            self._held[slot].length = length

    def _compose(self, batch: int, slots: list[int]) -> None:
        old_slots, old = self._batches.pop(batch, ([], None))
        singles: dict[int, list[Any]] = {}
        for index, slot in enumerate(old_slots):
            if slot in self._held and old is not None:
                singles[slot] = [
                    entry.extract(index) if not entry.empty() else _KV() for entry in old.entries
                ]
        for slot in slots:
            caches = self._held[slot].caches
            if caches is not None:
                singles[slot] = caches.entries
                self._held[slot].caches = None
        if not slots:
            return
        owned = self._stage.make_caches().owned
        entries = [
            _Rows.merge([singles[slot][layer] for slot in slots]) for layer in range(self._stage.layers)
        ]
        self._batches[batch] = slots, PlainCaches(entries, owned)


@dataclasses.dataclass
class _Undo:
    snapshot: PlainSnapshot
    also: Callable[[], None]

    def restore(self) -> None:
        self.snapshot.restore()
        self.also()


@dataclasses.dataclass
class _Running:
    request: Request
    fed: int = 0
    generated: int = 0
    in_flight: int = 0


class FifoScheduler:
    """One request after the other in slot 0, with its tokens so many steps ahead."""

    def __init__(self, *, chunk_tokens: int, lookahead: int, deadline_seconds: float = 30) -> None:
        self._chunk_tokens, self._lookahead, self._deadline_seconds = (
            chunk_tokens,
            lookahead,
            deadline_seconds,
        )
        self._waiting: collections.deque[Request] = collections.deque()
        self._running: _Running | None = None
        self._operations: list[Operation] = []
        self._on_their_way: collections.deque[tuple[Step, _Running | None, float]] = collections.deque()
        self.steps = 0

    def submit(self, request: Request) -> list[Any]:
        self._waiting.append(request)
        return []

    def cancel(self, request_id: str) -> list[Any]:
        waiting = [request for request in self._waiting if request.request_id == request_id]
        for request in waiting:
            self._waiting.remove(request)
        if self._running is not None and self._running.request.request_id == request_id:
            self._close()
            return [Cancelled(request_id)]
        return [Cancelled(request_id)] if waiting else []

    def next_step(self, now: float) -> Step | None:
        if self._running is None and self._waiting and not self._on_their_way:
            request = self._waiting.popleft()
            self._running = _Running(request)
            self._operations.append(
                Open(0, request.request_id, len(request.prompt) + request.max_tokens, request.sampling)
            )
        running = self._running
        if running is None:
            return (
                self._give(Step(self.steps + 1, "operations", self._taken()), None, now)
                if self._operations
                else None
            )
        prompt = running.request.prompt
        body = len(prompt) - 1
        if running.fed < body:
            tokens = prompt[running.fed : min(running.fed + self._chunk_tokens, body)]
            row = Row(0, running.request.request_id, running.fed)
            step = Step(self.steps + 1, "prefill", self._taken(), (row,), tokens)
            running.fed += len(tokens)
            return self._give(step, running, now)
        decodes = running.fed - body
        if running.in_flight > self._lookahead or decodes >= running.request.max_tokens:
            return None
        token = prompt[-1] if decodes == 0 else None
        row = Row(0, running.request.request_id, running.fed, token, decodes)
        running.fed += 1
        running.in_flight += 1
        return self._give(Step(self.steps + 1, "decode", self._taken(), (row,)), running, now)

    def done(self, result: StepDone, now: float) -> list[Any]:
        del now
        if not self._on_their_way or self._on_their_way[0][0].number != result.number:
            raise ValueError(f"a result came for step {result.number}")
        step, running, _ = self._on_their_way.popleft()
        if running is None or step.kind != "decode" or running is not self._running:
            return []
        running.in_flight -= 1
        (sampled,) = result.sampled
        index = running.generated
        running.generated += 1
        finish = None
        if sampled.token in running.request.stop_tokens:
            finish = Finish.STOP
        elif running.generated == running.request.max_tokens:
            finish = Finish.LENGTH
        if finish is not None:
            self._close()
        return [Generated(running.request.request_id, index, sampled.token, sampled.logprob, finish)]

    def next_deadline(self) -> float | None:
        return self._on_their_way[0][2] + self._deadline_seconds if self._on_their_way else None

    def overdue(self, now: float) -> int | None:
        deadline = self.next_deadline()
        return self._on_their_way[0][0].number if deadline is not None and now >= deadline else None

    def _give(self, step: Step, running: _Running | None, now: float) -> Step:
        self.steps += 1
        self._on_their_way.append((step, running, now))
        return step

    def _taken(self) -> tuple[Operation, ...]:
        taken, self._operations = tuple(self._operations), []
        return taken

    def _close(self) -> None:
        assert self._running is not None
        self._operations.append(Close(0, self._running.request.request_id))
        self._running = None


def load_list_stage(folder: Path, first: int, end: int, layers: int, hidden: int = 64) -> ListStage:
    return ListStage(load_stage(folder, first, end, layers), hidden, layers)


def stand_in_parts() -> Parts:
    """A whole engine of these, for worker processes."""

    def load(start: lane_pb2.StartStage, progress: Progress) -> ListStage:
        deployment = start.deployment
        stage = deployment.stages[start.stage_index]
        model = load_stage(
            Path(start.model_path), stage.first_layer, stage.end_layer, deployment.layer_count, progress
        )
        return ListStage(model, 64, deployment.layer_count)

    def schedule(start: lane_pb2.StartStage, _stage: Any, queues: bool) -> FifoScheduler:
        return FifoScheduler(
            chunk_tokens=start.deployment.prefill_chunk_tokens,
            lookahead=int(queues),
            deadline_seconds=start.step_deadline_seconds,
        )

    return Parts(load, lambda start, stage: PlainHouse(stage, start.deployment.slots), schedule)  # type: ignore[arg-type]
