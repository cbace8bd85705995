"""The head's schedule: which request runs its next step. Pure: no clock of its own, no I/O, no mlx.

All stages run the steps in the order in which `Scheduler.next_step` gives them out, and the lanes between
them keep that order. So a slot may be released and given away while steps of its old owner are still on their
way.

* A slot holds one request; waiting requests get free slots in the order in which they came.
* Requests that hold a slot take turns, one step each: a chunk of a prompt or one decoded token. So a long
  prompt delays others by one chunk at a time.
* At most as many steps are on their way as there are stages. A request whose token is being sampled starts
  nothing else, as its next step needs that token. While it is alone, a request may have several chunks of its
  prompt on their way, so that all stages work on it.
* The prompt is cut as mlx-lm does: chunks of all but its last token, then the last token by itself.
"""

import collections
import dataclasses

from macmesh_daemon.engine.requests import (
    Cancelled,
    Effect,
    Finish,
    Generated,
    Refused,
    Release,
    Request,
    Step,
)
from macmesh_daemon.engine.sampling_parameters import sampling_refusal


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the plan allows."""

    context_tokens: int
    """Most tokens of one request, prompt and output together."""
    slots: int
    """Requests that run at once."""
    stages: int
    """Steps on their way at once."""
    prefill_chunk_tokens: int
    """Most prompt tokens in one step."""
    waiting: int = 64
    """Requests that wait for a slot; more are refused."""
    step_deadline_seconds: float = 30.0
    """Longest time from a step to its result."""


@dataclasses.dataclass
class _Running:
    request: Request
    slot: int
    reserve_tokens: int
    request_first_step: int
    """No step with a smaller number is this request's."""
    fed: int = 0
    """Tokens given out to steps."""
    generated: int = 0
    last_token: int = 0
    outstanding: int = 0
    """Steps on their way."""
    sampling: bool = False
    """A token is being sampled."""


class Scheduler:
    """Decides every step; see the module."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: collections.OrderedDict[str, Request] = collections.OrderedDict()
        self._running: dict[str, _Running] = {}
        self._turns: collections.deque[str] = collections.deque()
        self._free_slots = collections.deque(range(limits.slots))
        self._outstanding: collections.OrderedDict[int, tuple[str, float]] = collections.OrderedDict()
        self._steps = 0

    @property
    def steps(self) -> int:
        """Steps given out so far."""
        return self._steps

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits and nothing is on its way."""
        return not (self._waiting or self._running or self._outstanding)

    def submit(self, request: Request) -> list[Effect]:
        """Takes a request, or refuses it before any work is done."""
        refusal = self._refusal(request)
        if refusal is not None:
            return [refusal]
        self._waiting[request.request_id] = request
        self._admit()
        return []

    def cancel(self, request_id: str) -> list[Effect]:
        """Ends a request; its slot is free at once. An unknown one has just ended and is ignored."""
        if self._waiting.pop(request_id, None) is not None:
            return [Cancelled(request_id)]
        if request_id not in self._running:
            return []
        effects: list[Effect] = [Cancelled(request_id), self._release(request_id)]
        self._admit()
        return effects

    def next_step(self, now: float) -> Step | None:
        """The next step to run, or None where nothing can run before a result comes."""
        if len(self._outstanding) >= self._limits.stages:
            return None
        for _ in range(len(self._turns)):
            request_id = self._turns[0]
            self._turns.rotate(-1)
            running = self._running[request_id]
            if self._may_step(running):
                step = self._step(running)
                self._outstanding[step.number] = (request_id, now)
                return step
        return None

    def done(self, number: int, token: int | None, logprob: float) -> list[Effect]:
        """Takes the result of a step: the sampled token, or None where the step does not sample.

        Raises:
            ValueError: the step is not on its way, or not the oldest one.
        """
        oldest = next(iter(self._outstanding), None)
        if number != oldest:
            raise ValueError(f"a result came for step {number}, but step {oldest} is the next to be done")
        request_id, _ = self._outstanding.pop(number)
        running = self._running.get(request_id)
        # A cancelled request may have left steps behind, also where a new one has the same id.
        if running is None or number < running.request_first_step:
            return []
        running.outstanding -= 1
        if token is None:
            return []
        return self._take_token(running, token, logprob)

    def next_deadline(self) -> float | None:
        """When the oldest step on its way is overdue; None where there is none."""
        oldest = next(iter(self._outstanding.values()), None)
        return None if oldest is None else oldest[1] + self._limits.step_deadline_seconds

    def overdue(self, now: float) -> int | None:
        """The number of a step whose result is overdue: the pipeline has failed. None where there is none."""
        deadline = self.next_deadline()
        return next(iter(self._outstanding)) if deadline is not None and now >= deadline else None

    def _refusal(self, request: Request) -> Refused | None:
        context = self._limits.context_tokens
        prompt = len(request.prompt)
        if request.request_id in self._waiting or request.request_id in self._running:
            return Refused(
                request.request_id, "INVALID_ARGUMENT", f"{request.request_id} is being served already"
            )
        if not request.request_id or not request.prompt:
            return Refused(request.request_id, "INVALID_ARGUMENT", "a request needs an id and a prompt")
        if wrong := sampling_refusal(request.sampling):
            return Refused(request.request_id, "INVALID_ARGUMENT", wrong)
        # Without a limit of its own a request still needs room for one token.
        if prompt + max(request.max_tokens, 1) > context:
            return Refused(
                request.request_id,
                "CONTEXT_LENGTH_EXCEEDED",
                f"{prompt} prompt tokens and {max(request.max_tokens, 1)} new ones are more than the "
                f"{context} that the plan guarantees; ask for at most {max(context - prompt, 0)} new tokens",
            )
        if not self._free_slots and len(self._waiting) >= self._limits.waiting:
            return Refused(
                request.request_id,
                "RESOURCE_EXHAUSTED",
                f"{len(self._running)} requests run and {len(self._waiting)} wait; try again later",
            )
        return None

    def _admit(self) -> None:
        while self._waiting and self._free_slots:
            request_id, request = self._waiting.popitem(last=False)
            most = request.max_tokens or self._limits.context_tokens - len(request.prompt)
            self._running[request_id] = _Running(
                request, self._free_slots.popleft(), len(request.prompt) + most, self._steps + 1
            )
            self._turns.append(request_id)

    def _may_step(self, running: _Running) -> bool:
        if running.sampling:
            return False
        return running.outstanding == 0 or len(self._running) == 1

    def _step(self, running: _Running) -> Step:
        prompt = running.request.prompt
        first, offset = running.fed == 0, running.fed
        if running.generated:
            tokens: tuple[int, ...] = (running.last_token,)
        else:
            body = len(prompt) - 1
            end = min(offset + self._limits.prefill_chunk_tokens, body) if offset < body else len(prompt)
            tokens = prompt[offset:end]
        running.fed += len(tokens)
        running.outstanding += 1
        running.sampling = running.fed >= len(prompt)
        self._steps += 1
        return Step(
            number=self._steps,
            request_id=running.request.request_id,
            slot=running.slot,
            first=first,
            reserve_tokens=running.reserve_tokens,
            offset=offset,
            tokens=tokens,
            sample=running.sampling,
            sampling=running.request.sampling,
            sample_index=running.generated,
        )

    def _take_token(self, running: _Running, token: int, logprob: float) -> list[Effect]:
        request = running.request
        running.sampling = False
        index = running.generated
        running.generated += 1
        running.last_token = token
        finish = None
        if token in request.stop_tokens:
            finish = Finish.STOP
        elif len(request.prompt) + running.generated >= running.reserve_tokens:
            finish = Finish.LENGTH
        effects: list[Effect] = [Generated(request.request_id, index, token, logprob, finish)]
        if finish is not None:
            effects.append(self._release(request.request_id))
            self._admit()
        return effects

    def _release(self, request_id: str) -> Release:
        running = self._running.pop(request_id)
        self._turns.remove(request_id)
        self._free_slots.append(running.slot)
        return Release(running.slot, request_id)
