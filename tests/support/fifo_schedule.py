"""A schedule for tests of the worker alone: requests one after the other."""

import collections
import dataclasses
from typing import Any

from macmesh_daemon.engine.limits import SchedulerStats
from macmesh_daemon.engine.requests import Cancelled, Finish, Generated, Request
from macmesh_daemon.engine.steps import Close, Open, Operation, Row, Step, StepDone


@dataclasses.dataclass
class _Running:
    request: Request
    fed: int = 0
    generated: int = 0
    in_flight: int = 0


class FifoScheduler:
    """One request after the other in slot 0, with its tokens so many steps ahead."""

    def __init__(self, *, chunk_tokens: int, lookahead: int, deadline_seconds: float = 60) -> None:
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

    @property
    def stats(self) -> SchedulerStats:
        """Nothing is counted."""
        return SchedulerStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, (), ())

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
