"""The head's schedule: every step that the stages run. Pure: no clock of its own, no I/O, no mlx.

All stages carry out the steps in the order in which `Scheduler.next_step` gives them out. So a slot may be closed
and given away, and an entry taken up, while steps before are still on their way.

* Requests are taken in the order in which they come, as far as their caches fit beside what runs on every stage
  (`admission`, `holdings`, `waiting`).
* Prompts are cut as mlx-lm cuts them: chunks of all but the last token, then the last token by itself. Later tokens
  are decoded together with others (`groups`).
* Decode steps come first. Between two decode steps of a group goes at most one chunk of a prompt, whose size follows
  the time that chunks take (`prefill`).
* What a request leaves behind is kept where there is room, for later prompts with the same beginning
  (`prefix_index`).
"""

import collections
import dataclasses
import heapq

from macmesh_daemon.engine.admission import Admission, Admissions, refusal_of
from macmesh_daemon.engine.budget import CacheBudget
from macmesh_daemon.engine.groups import Group, needed_capacity
from macmesh_daemon.engine.holdings import Holdings
from macmesh_daemon.engine.keeping import Keeping
from macmesh_daemon.engine.limits import AnyCaches, CacheTraits, Limits, SchedulerStats
from macmesh_daemon.engine.prefill import ChunkSizer, PromptPicker
from macmesh_daemon.engine.requests import Cancelled, Effect, Finish, Generated, Refused, Request
from macmesh_daemon.engine.running import Running
from macmesh_daemon.engine.steps import (
    Close,
    Compose,
    Forget,
    Open,
    Operation,
    Reuse,
    Row,
    Sampled,
    Step,
    StepDone,
    StepKind,
)
from macmesh_daemon.engine.waiting import WaitingQueue

_NEWEST_WEIGHT = 0.2

__all__ = ["Limits", "Scheduler", "SchedulerStats"]


@dataclasses.dataclass
class _OnItsWay:
    step: Step
    began: float
    rows: tuple[Running, ...]
    others_decode: bool = False
    """Of a chunk: whether it was sized for others that decode."""


class Scheduler:
    """Decides every step; see the module.

    Args:
        limits: what the plan allows.
        budget: what the stages have for caches; by default ``limits.slots`` contexts, counted in tokens.
        traits: what the caches allow; by default everything.
    """

    def __init__(
        self, limits: Limits, budget: CacheBudget | None = None, traits: CacheTraits | None = None
    ) -> None:
        self._limits = limits
        self._budget = budget or CacheBudget.of_tokens(
            slots=limits.slots, context_tokens=limits.context_tokens
        )
        self._traits = traits or AnyCaches()
        self._holdings = Holdings(self._budget, limits.prefill_chunk_tokens)
        self._admissions = Admissions(limits, self._budget, self._traits, self._holdings)
        self._keeping = Keeping(limits, self._budget, self._traits, self._holdings)
        self._waiting = WaitingQueue(limits)
        self._running: dict[str, Running] = {}
        self._ended: list[Running] = []
        self._group_of: dict[Running, Group] = {}
        self._free_slots = list(range(limits.slots_at_once))
        self._operations: list[Operation] = []
        self._on_their_way: collections.deque[_OnItsWay] = collections.deque()
        self._sizer = ChunkSizer(limits)
        self._picker = PromptPicker()
        self._last_prefill = 0
        self._room_changed = False
        self._now = 0.0
        self._last_done = 0.0
        self._last_done_is_chunk = False
        self._request_seconds: float | None = None
        self._steps = self._groups = self._taken = 0
        self._prompt_tokens = self._hits = self._reused_tokens = self._generated_tokens = 0

    @property
    def steps(self) -> int:
        """Steps given out so far."""
        return self._steps

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits, nothing is on its way and no operation has still to be told."""
        return not (self._waiting or self._running or self._on_their_way or self._ended or self._operations)

    @property
    def stats(self) -> SchedulerStats:
        """What was counted so far."""
        holdings = self._holdings
        entries = holdings.entries_bytes()
        return SchedulerStats(
            running=len(self._running),
            waiting=len(self._waiting),
            entries=len(holdings.entries),
            batches=sum(len(group.rows) > 1 for group in holdings.groups),
            steps=self._steps,
            prompts=self._taken,
            prompt_tokens=self._prompt_tokens,
            prefix_hits=self._hits,
            reused_tokens=self._reused_tokens,
            generated_tokens=self._generated_tokens,
            cache_bytes=tuple(map(sum, zip(holdings.groups_bytes(), entries, strict=True))),
            cache_budget_bytes=self._budget.budget_bytes,
        )

    def submit(self, request: Request) -> list[Effect]:
        """Takes a request, or refuses it before any work is done; tells its position where it has to wait."""
        name = request.request_id
        if name in self._waiting or name in self._running:
            return [Refused(name, "INVALID_ARGUMENT", f"{name} is being served already")]
        if refusal := refusal_of(request, self._limits, self._budget):
            return [refusal]
        self._retire()
        self._waiting.add(request)
        self._waiting.admit(self._take, self._now)
        if name in self._waiting and len(self._waiting) > self._limits.waiting:
            self._waiting.remove(name)
            return [
                Refused(
                    name,
                    "RESOURCE_EXHAUSTED",
                    f"{len(self._running)} requests run and {len(self._waiting)} wait; try again later",
                )
            ]
        return self._waiting.tell(self._estimate, self._now)

    def cancel(self, request_id: str) -> list[Effect]:
        """Ends a request; its slot is free at the next step. An unknown one has just ended and is ignored."""
        if self._waiting.remove(request_id):
            self._room_changed = True
        elif (running := self._running.get(request_id)) is not None:
            self._end(running)
        else:
            return []
        return [Cancelled(request_id), *self._waiting.tell(self._estimate, self._now)]

    def next_step(self, now: float) -> Step | None:
        """The next step to run, or None where nothing can run before a result or a request comes."""
        self._now = now
        self._retire()
        if self._room_changed:
            self._room_changed = False
            self._waiting.admit(self._take, now)
        if (first := self._due_first()) is not None:
            return self._decode([first], self._group_of[first], now, alone=True)
        if (group := self._due_group()) is not None:
            return self._decode(group.ready(self._limits.lookahead), group, now, alone=False)
        if (running := self._due_prompt()) is not None:
            return self._prefill(running, now)
        if self._operations and not self._on_their_way:
            return self._give_out("operations", (), now)
        return None

    def done(self, result: StepDone, now: float) -> list[Effect]:
        """Takes the result of a step.

        Raises:
            ValueError: the step is not on its way, or not the oldest one, or has another number of rows.
        """
        oldest = self._on_their_way[0] if self._on_their_way else None
        if oldest is None or result.number != oldest.step.number:
            expected = oldest.step.number if oldest else None
            raise ValueError(
                f"a result came for step {result.number}, but step {expected} is the next to be done"
            )
        step = oldest.step
        if len(result.sampled) != (len(step.rows) if step.kind == "decode" else 0):
            raise ValueError(
                f"step {step.number} has {len(step.rows)} rows, its result {len(result.sampled)}"
            )
        self._on_their_way.popleft()
        if step.kind == "prefill":
            began = max(oldest.began, self._last_done)
            # The stage's own time, where results are taken late, and more where another stage was slower.
            seconds = max(result.seconds, now - began)
            self._sizer.took(len(step.tokens), seconds, others_decode=oldest.others_decode)
            if self._last_done_is_chunk and oldest.began < self._last_done:
                self._sizer.cost.took(len(step.tokens), step.rows[0].offset, now - self._last_done)
        self._last_done_is_chunk = step.kind == "prefill"
        self._now = self._last_done = now
        effects: list[Effect] = []
        for running, sampled in zip(oldest.rows, result.sampled, strict=False):
            running.outstanding -= 1
            if not running.ended:
                effects.append(self._sampled(running, sampled))
        return effects + self._waiting.tell(self._estimate, now)

    def next_deadline(self) -> float | None:
        """When the oldest step on its way is overdue; None where there is none."""
        if not self._on_their_way:
            return None
        # A step can only be done once those before it are.
        return max(self._on_their_way[0].began, self._last_done) + self._limits.step_deadline_seconds

    def overdue(self, now: float) -> int | None:
        """The number of a step whose result is overdue: the pipeline has failed. None where there is none."""
        deadline = self.next_deadline()
        return self._on_their_way[0].step.number if deadline is not None and now >= deadline else None

    # Taking and ending requests.

    def _find(self, request: Request, now: float) -> Admission | None:
        return self._admissions.find(request, self._taken, Group(self._groups), now)

    def _take(self, request: Request) -> bool | None:
        if not self._free_slots:
            return None
        found = self._find(request, self._now)
        if found is None:
            return False
        running, group, entry = found.running, found.group, found.entry
        for victim in found.evicted:
            self._forget(victim.number)
        if entry is not None:
            self._holdings.entries.remove(entry.number)
            self._hits += 1
            self._reused_tokens += running.fed
        if group not in self._holdings.groups:
            self._holdings.groups.append(group)
            self._groups += 1
        running.slot = heapq.heappop(self._free_slots)
        group.members.append(running)
        self._group_of[running] = group
        self._running[request.request_id] = running
        self._taken += 1
        self._prompt_tokens += len(request.prompt)
        history = request.sampling.history_tokens
        self._operations.append(
            Open(
                slot=running.slot,
                request_id=request.request_id,
                reserve_tokens=running.reserve_tokens,
                sampling=request.sampling,
                history=request.prompt[-history:] if history else (),
                reuse=None if entry is None else Reuse(entry.number, running.fed),
            )
        )
        return True

    def _end(self, running: Running) -> None:
        running.ended = True
        self._ended.append(running)
        del self._running[running.request.request_id]
        seconds, before = self._now - running.began, self._request_seconds
        self._request_seconds = seconds if before is None else before + _NEWEST_WEIGHT * (seconds - before)

    def _retire(self) -> None:
        """Closes what has ended, and makes batches smaller by it."""
        if not self._ended:
            return
        ended, self._ended = self._ended, []
        self._room_changed = True
        rows = [running for running in ended if self._is_row(running)]
        for running in ended:
            if not self._is_row(running):
                self._close(running)
                self._leave(running)
        # All stay in the batch until it is composed anew; an entry made of a row is a copy until then.
        for running in rows:
            self._close(running)
        groups = {self._group_of[running].number: self._group_of[running] for running in rows}
        for running in rows:
            self._leave(running)
        for group in groups.values():
            group.capacity_tokens = needed_capacity(group.rows) if group.rows else 0
            self._operations.append(self._compose(group))

    def _is_row(self, running: Running) -> bool:
        group = self._group_of[running]
        return group.capacity_tokens > 0 and running in group.rows

    def _close(self, running: Running) -> None:
        kept = self._keeping.decide(running, is_row=self._is_row(running))
        for victim in kept.evicted:
            self._forget(victim.number)
        entry = kept.entry
        if entry is not None:
            self._holdings.entries.add(entry)
        self._operations.append(
            Close(
                slot=running.slot,
                request_id=running.request.request_id,
                keep_as=entry.number if entry else None,
                keep_tokens=entry.tokens if entry else 0,
                keep_reserve_tokens=entry.reserve_tokens if entry else 0,
            )
        )
        heapq.heappush(self._free_slots, running.slot)

    def _leave(self, running: Running) -> None:
        group = self._group_of.pop(running)
        group.members.remove(running)
        if running in group.rows:
            group.rows.remove(running)
        if not group.members:
            self._holdings.groups.remove(group)

    def _forget(self, number: int) -> None:
        self._holdings.entries.remove(number)
        self._operations.append(Forget(number))

    def _estimate(self, position: int) -> float | None:
        if self._request_seconds is None:
            return None
        return self._request_seconds * position / max(1, len(self._running))

    def _sampled(self, running: Running, sampled: Sampled) -> Generated:
        request = running.request
        index = request.replayed_tokens + len(running.generated)
        running.generated.append(sampled.token)
        self._generated_tokens += 1
        finish = None
        if sampled.token in request.stop_tokens:
            finish = Finish.STOP
        elif len(request.prompt) + len(running.generated) >= running.total_tokens:
            finish = Finish.LENGTH
        if finish is not None:
            self._end(running)
        return Generated(request.request_id, index, sampled.token, sampled.logprob, finish)

    # Choosing what runs.

    @property
    def _decode_is_full(self) -> bool:
        """Whether so many decode steps are on their way that more would only wait."""
        limits = self._limits
        enough = limits.stages * (1 + limits.lookahead) + 1
        return sum(one.step.kind == "decode" for one in self._on_their_way) >= enough

    def _due_first(self) -> Running | None:
        due = [running for running in self._running.values() if running.first_is_due]
        return None if self._decode_is_full else min(due, key=lambda running: running.order, default=None)

    def _due_group(self) -> Group | None:
        due = [group for group in self._holdings.groups if group.ready(self._limits.lookahead)]
        if self._decode_is_full or not due:
            return None
        return min(due, key=lambda group: group.last_decode)

    def _due_prompt(self) -> Running | None:
        prompts = [running for running in self._running.values() if running.body_left]
        if not prompts:
            return None
        decoding = [group for group in self._holdings.groups if group.decodes]
        if any(group.last_decode < self._last_prefill for group in decoding):
            return None
        chunks = sum(one.step.kind == "prefill" for one in self._on_their_way)
        if chunks >= self._limits.stages + (not decoding):
            return None
        return self._picker.pick(prompts)

    # Giving steps out.

    def _prefill(self, running: Running, now: float) -> Step:
        decoding = any(group.decodes for group in self._holdings.groups)
        running.chunk_tokens = running.chunk_tokens or self._sizer.even_tokens(running.body_left)
        wanted = self._sizer.slice_tokens() if decoding else running.chunk_tokens
        count = min(wanted, running.body_left)
        row = Row(running.slot, running.request.request_id, running.fed)
        tokens = running.request.prompt[running.fed : running.fed + count]
        step = self._give_out("prefill", (row,), now, tokens=tokens)
        self._on_their_way[-1].others_decode = decoding
        running.fed += count
        self._last_prefill = step.number
        return step

    def _decode(self, rows: list[Running], group: Group, now: float, *, alone: bool) -> Step:
        if not alone:
            self._join(group, rows)
        batched = not alone and group.capacity_tokens > 0
        step = self._give_out(
            "decode",
            tuple(self._row(running) for running in rows),
            now,
            batch=group.number if batched else None,
            running=tuple(rows),
        )
        for running in rows:
            running.fed += 1
            running.samples += 1
            running.outstanding += 1
        # A row's first step, by itself, is none of the rows that decode already.
        if not alone or not group.rows:
            group.last_decode = step.number
        return step

    def _row(self, running: Running) -> Row:
        token = None
        if not running.samples:
            token = running.request.prompt[-1]
        elif not self._limits.lookahead:
            token = running.generated[-1]
        request = running.request
        return Row(
            running.slot, request.request_id, running.fed, token, request.replayed_tokens + running.samples
        )

    def _join(self, group: Group, rows: list[Running]) -> None:
        """Makes these the group's rows; composes its batch where that changes it."""
        if rows == group.rows:
            return
        group.rows = list(rows)
        if len(rows) == 1 and not group.capacity_tokens:
            return
        group.capacity_tokens = needed_capacity(rows)
        compose = self._compose(group)
        # Rows that leave and rows that join at once: the batch is made anew once.
        last = next((i for i in reversed(range(len(self._operations))) if self._composes(i, group)), None)
        if last is None:
            self._operations.append(compose)
        else:
            self._operations[last] = compose

    def _composes(self, index: int, group: Group) -> bool:
        operation = self._operations[index]
        return isinstance(operation, Compose) and operation.batch == group.number

    @staticmethod
    def _compose(group: Group) -> Compose:
        return Compose(group.number, tuple(row.slot for row in group.rows), group.capacity_tokens)

    def _give_out(
        self,
        kind: StepKind,
        rows: tuple[Row, ...],
        now: float,
        *,
        tokens: tuple[int, ...] = (),
        batch: int | None = None,
        running: tuple[Running, ...] = (),
    ) -> Step:
        self._steps += 1
        operations, self._operations = tuple(self._operations), []
        step = Step(self._steps, kind, operations, rows, tokens, batch)
        self._on_their_way.append(_OnItsWay(step, now, running))
        return step
