"""A pipeline of stages in virtual time that carries out a schedule, and a model of the caches that it keeps.

The caches are lists of tokens: what a slot, a row or an entry would hold. The "model" is a function of a
sequence's tokens, so that a step on wrong caches samples a wrong token.
"""

import dataclasses
import zlib
from collections import deque
from collections.abc import Callable, Sequence

from macmesh_daemon.engine.budget import CacheBudget
from macmesh_daemon.engine.limits import CacheTraits, Limits
from macmesh_daemon.engine.requests import Cancelled, Effect, Generated, Refused, Request, Waiting
from macmesh_daemon.engine.scheduler import Scheduler
from macmesh_daemon.engine.steps import Close, Compose, Forget, Open, Operation, Sampled, Step, StepDone
from macmesh_placement.cachecost import CachePiece
from macmesh_placement.stagecache import StageCacheCost


def next_token(tokens: Sequence[int], words: int) -> int:
    """What the model says after these tokens."""
    return zlib.crc32(bytes(token % 251 for token in tokens)) % words


@dataclasses.dataclass
class Cache:
    """One request's caches."""

    tokens: list[int]
    reserve_tokens: int
    prefill: bool = True
    """Windows may be as wide as a prefill step leaves them."""


@dataclasses.dataclass
class Batch:
    slots: list[int]
    capacity_tokens: int


class House:
    """The caches of all stages; checks every operation, and the bytes at every moment."""

    def __init__(
        self,
        costs: Sequence[StageCacheCost],
        budget_bytes: Sequence[int],
        traits: CacheTraits,
        chunk_tokens: int,
    ) -> None:
        self.costs, self.budget_bytes, self.traits, self.chunk_tokens = (
            costs,
            budget_bytes,
            traits,
            chunk_tokens,
        )
        self.slots: dict[int, tuple[str, Cache]] = {}
        self.entries: dict[int, Cache] = {}
        self.batches: dict[int, Batch] = {}
        self.closed_rows: set[int] = set()
        self.sampled: dict[int, int] = {}
        self.composes = 0

    def row_of(self, slot: int) -> int | None:
        return next((n for n, batch in self.batches.items() if slot in batch.slots), None)

    def apply(self, operation: Operation) -> None:
        match operation:
            case Open():
                self._open(operation)
            case Compose():
                self._compose(operation)
            case Close():
                self._close(operation)
            case Forget(entry):
                del self.entries[entry]
        self.check_bytes([])

    def _open(self, opened: Open) -> None:
        assert opened.slot not in self.slots
        assert opened.slot not in self.closed_rows
        cache = Cache([], opened.reserve_tokens)
        if opened.reuse is not None:
            old = self.entries.pop(opened.reuse.entry)
            self._cut(old.tokens, opened.reuse.tokens)
            cache.tokens = old.tokens
            cache.prefill = True
            if old.reserve_tokens != opened.reserve_tokens:
                self._check_conversion([(1, old.reserve_tokens)], (1, opened.reserve_tokens))
        self.slots[opened.slot] = (opened.request_id, cache)

    def _close(self, closed: Close) -> None:
        name, cache = self.slots.pop(closed.slot)
        assert name == closed.request_id
        self.sampled.pop(closed.slot, None)
        batch = self.row_of(closed.slot)
        if batch is not None:
            self.closed_rows.add(closed.slot)
        if closed.keep_as is None:
            return
        assert closed.keep_as not in self.entries
        self._cut(cache.tokens, closed.keep_tokens)
        assert closed.keep_tokens == len(cache.tokens) <= closed.keep_reserve_tokens
        if batch is None and closed.keep_reserve_tokens != cache.reserve_tokens:
            self._check_conversion([(1, cache.reserve_tokens)], (1, closed.keep_reserve_tokens))
        self.entries[closed.keep_as] = Cache(cache.tokens, closed.keep_reserve_tokens, cache.prefill)

    def _cut(self, tokens: list[int], length: int) -> None:
        assert length <= len(tokens)
        if length < len(tokens):
            limit = self.traits.trim_below_tokens
            assert limit is None or len(tokens) <= limit
            del tokens[length:]

    def _compose(self, compose: Compose) -> None:
        self.composes += 1
        old = self.batches.pop(compose.batch, Batch([], 0))
        assert not self.traits.unbatchable
        remaining = [slot for slot in old.slots if slot not in self.closed_rows]
        assert list(compose.slots[: len(remaining)]) == remaining
        joined = compose.slots[len(remaining) :]
        before = [(len(old.slots), old.capacity_tokens)] if old.slots else []
        for slot in joined:
            assert self.row_of(slot) is None
            before.append((1, self.slots[slot][1].reserve_tokens))
        lengths = [len(self.slots[slot][1].tokens) for slot in compose.slots]
        assert compose.capacity_tokens >= max(lengths, default=0)
        after = (len(compose.slots), compose.capacity_tokens)
        if compose.slots:
            self.batches[compose.batch] = Batch(list(compose.slots), compose.capacity_tokens)
        self.closed_rows -= set(old.slots)
        if compose.slots:
            self._check_conversion(before, after)

    def _check_conversion(self, before: list[tuple[int, int]], after: tuple[int, int]) -> None:
        """Cache by cache, in any order, each evaluated and the old freed before the next."""
        extra = []
        for cost in self.costs:
            final, worst, both = 0, 0, 0
            for piece, count in cost.pieces:
                old = sum(rows * piece.reserved_bytes(tokens) for rows, tokens in before)
                new = after[0] * piece.reserved_bytes(after[1])
                final += count * new
                worst += count * max(old, new)
                both = max(both, min(old, new))
            extra.append(worst + both - final)
        self.check_bytes(extra)

    def held(self) -> list[int]:
        held = []
        for cost in self.costs:
            total = 0
            for cache in [
                cache for slot, (_, cache) in self.slots.items() if self.row_of(slot) is None
            ] + list(self.entries.values()):
                total += cost.reserved_bytes(cache.reserve_tokens) + cost.slack_bytes
                if cache.prefill:
                    total += cost.prefill_bytes(cache.reserve_tokens, self.chunk_tokens)
            for batch in self.batches.values():
                total += len(batch.slots) * cost.reserved_bytes(batch.capacity_tokens) + cost.slack_bytes
            held.append(total)
        return held

    def check_bytes(self, extra: list[int]) -> None:
        held = self.held()
        for index, budget in enumerate(self.budget_bytes):
            assert held[index] + (extra[index] if extra else 0) <= budget, (held, extra, self.budget_bytes)

    def run(self, step: Step, words: int) -> tuple[Sampled, ...]:
        """Carries a step out; what was sampled."""
        for operation in step.operations:
            self.apply(operation)
        assert not self.closed_rows
        sampled = []
        if step.kind == "decode":
            slots = [row.slot for row in step.rows]
            if step.batch is None:
                assert len(slots) == 1
                assert self.row_of(slots[0]) is None
            else:
                assert self.batches[step.batch].slots == slots
        for row in step.rows:
            name, cache = self.slots[row.slot]
            assert name == row.request_id
            assert row.offset == len(cache.tokens)
            if step.kind == "prefill":
                cache.tokens += step.tokens
            else:
                cache.tokens.append(self.sampled[row.slot] if row.token is None else row.token)
                cache.prefill = False
                self.sampled[row.slot] = next_token(cache.tokens, words)
                sampled.append(Sampled(self.sampled[row.slot], -0.5))
            assert len(cache.tokens) <= cache.reserve_tokens
        if step.batch is not None:
            batch = self.batches[step.batch]
            # Rows stand flush at their ends: the longest says how much of the allocation is used.
            assert max(len(self.slots[slot][1].tokens) for slot in batch.slots) <= batch.capacity_tokens
        return tuple(sampled)


def growing(bytes_per_token: int) -> CachePiece:
    return CachePiece(kind="growing", source="KVCache", bytes_per_token=bytes_per_token, step_tokens=4)


def window(bytes_per_token: int, tokens: int) -> CachePiece:
    return CachePiece(
        kind="ring",
        source="RotatingKVCache",
        bytes_per_token=bytes_per_token,
        step_tokens=4,
        window_tokens=tokens,
    )


def constant(size_bytes: int) -> CachePiece:
    return CachePiece(kind="constant", source="ArraysCache", constant_bytes=size_bytes)


class Pipeline:
    """Stages in virtual time that run what a scheduler gives out.

    Args:
        limits: of the schedule.
        costs: of the stages' caches.
        budget_bytes: of the stages.
        traits: of the caches.
        seconds: how long one stage takes for a step.
        words: size of the vocabulary.
        prompt_shares: for each stage, how much of that it takes for a chunk of a prompt; absent: all of it.
    """

    def __init__(
        self,
        limits: Limits,
        costs: Sequence[StageCacheCost],
        budget_bytes: Sequence[int],
        traits: CacheTraits,
        seconds: Callable[[Step], float] = lambda step: 0.01 * max(1, step.token_count),
        words: int = 5,
        prompt_shares: Sequence[float] = (),
    ) -> None:
        self.prompt_shares = prompt_shares or (1.0,) * limits.stages
        self.limits, self.seconds, self.words = limits, seconds, words
        self.scheduler = Scheduler(limits, CacheBudget(costs, budget_bytes), traits)
        self.house = House(costs, budget_bytes, traits, limits.prefill_chunk_tokens)
        self.now = 0.0
        self.free_at = [0.0] * limits.stages
        self.busy = [0.0] * limits.stages
        self.on_their_way: deque[tuple[float, StepDone, Step]] = deque()
        self.steps: list[Step] = []
        self.requests: dict[str, Request] = {}
        self.tokens: dict[str, list[int]] = {}
        self.told_at: dict[str, list[float]] = {}
        self.ended: dict[str, str] = {}
        self.effects: list[Effect] = []
        self.first_step: dict[str, int] = {}

    def take(self, effects: list[Effect]) -> list[Effect]:
        self.effects += effects
        for effect in effects:
            assert effect.request_id not in self.ended or isinstance(effect, Refused)
            match effect:
                case Generated(name, index, token, _, finish):
                    assert index == len(self.tokens[name])
                    self.tokens[name].append(token)
                    self.told_at[name].append(self.now)
                    if finish is not None:
                        self.ended[name] = finish.value
                case Cancelled(name):
                    self.ended[name] = "cancelled"
                case Refused(name):
                    self.ended[name] = "refused"
                case Waiting(_, position):
                    assert position >= 1
        return effects

    def submit(self, request: Request) -> list[Effect]:
        self.requests[request.request_id] = request
        self.tokens[request.request_id] = []
        self.told_at[request.request_id] = []
        return self.take(self.scheduler.submit(request))

    def cancel(self, name: str) -> list[Effect]:
        return self.take(self.scheduler.cancel(name))

    def step(self) -> bool:
        """Starts a step, where one can be started."""
        step = self.scheduler.next_step(self.now)
        if step is None:
            return False
        self.steps.append(step)
        assert step.number == len(self.steps)
        for row in step.rows:
            self.first_step.setdefault(row.request_id, step.number)
        assert len(step.rows) <= self.limits.batch_rows
        assert len(step.tokens) <= self.limits.prefill_chunk_tokens
        sampled = self.house.run(step, self.words)
        seconds = 0.0
        at = self.now
        for stage in range(self.limits.stages):
            seconds = self.seconds(step) * (self.prompt_shares[stage] if step.kind == "prefill" else 1)
            at = self.free_at[stage] = max(at, self.free_at[stage]) + seconds
            self.busy[stage] += seconds
        self.on_their_way.append((at, StepDone(step.number, sampled, seconds), step))
        return True

    def result(self) -> bool:
        """Takes the oldest result, when it is there."""
        if not self.on_their_way:
            return False
        at, done, _ = self.on_their_way.popleft()
        self.now = max(self.now, at)
        self.take(self.scheduler.done(done, self.now))
        return True

    def turn(self) -> bool:
        """Starts all that can be started, and takes a result."""
        started = False
        while self.step():
            started = True
        return self.result() or started

    def run(self) -> None:
        """Runs to the end."""
        while self.turn():
            pass

    def expected(self, name: str) -> list[int]:
        """The tokens that the request gets when it is alone."""
        request = self.requests[name]
        tokens = list(request.prompt)
        count = request.max_tokens or self.limits.context_tokens - len(tokens)
        for _ in range(count):
            tokens.append(next_token(tokens, self.words))
            if tokens[-1] in request.stop_tokens:
                break
        return tokens[len(request.prompt) :]
