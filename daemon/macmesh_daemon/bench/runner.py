"""Runs cases and climbs against a target, and times what comes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from macmesh_daemon.bench.cases import WARM_UP_TOKENS, Case, prompt, prompts
from macmesh_daemon.bench.errors import RemoteAnswerError
from macmesh_daemon.bench.requests import Arrival, RequestRun
from macmesh_daemon.bench.results import CaseResult, ClimbResult, Rung
from macmesh_daemon.bench.schedule import added_schedules, schedule_work
from macmesh_daemon.bench.stages import added, ledger_complaint, stage_work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from macmesh_daemon.bench.schedule import ScheduleWork
    from macmesh_daemon.bench.stages import StageWork
    from macmesh_daemon.bench.target import Target
    from macmesh_daemon.clock import Clock


class Runner:
    """Sends requests and keeps the time.

    Args:
        target: What to measure.
        clock: The client's clock.
        seed: Of the prompts.
        vocabulary_tokens: Prompts are drawn below this.
    """

    def __init__(self, target: Target, clock: Clock, *, seed: int, vocabulary_tokens: int) -> None:
        self._target = target
        self._clock = clock
        self._seed = seed
        self._vocabulary_tokens = vocabulary_tokens

    async def warm_up(self, prompt_tokens: int, new_tokens: int, requests: int) -> None:
        """Short answers that nobody measures, to prompts of their own, one after the other."""
        for number in range(requests):
            tokens = prompt(self._seed, self._vocabulary_tokens, prompt_tokens, "warm-up", number)
            await self.request(tokens, min(new_tokens, WARM_UP_TOKENS))

    async def request(self, token_ids: Sequence[int], new_tokens: int) -> RequestRun:
        """One request, to its end.

        Raises:
            RemoteAnswerError: it gave more or fewer tokens.
            MacmeshError: it failed.
        """
        began = self._clock.now()
        async with aclosing(self._target.generate(token_ids, new_tokens)) as responses:
            arrivals = [Arrival(self._clock.now(), ids) async for ids in responses if ids]
        run = RequestRun(len(token_ids), began, tuple(arrivals))
        if len(run.token_ids) != new_tokens:
            raise RemoteAnswerError(
                f"a request for {new_tokens} tokens that no end-of-sequence token may end gave "
                f"{len(run.token_ids)}"
            )
        return run

    async def case(self, case: Case) -> CaseResult:
        """Measure a case: for each round, the stages are looked at before and after, not meanwhile.

        Raises:
            RemoteAnswerError: an answer was not what was asked for, or the plan changed.
            MacmeshError: a request failed; the other requests of its round are cancelled.
        """
        if case.prefix == "warm":
            await self._round(case, prompts(case, self._seed, self._vocabulary_tokens, 0))
        runs: list[RequestRun] = []
        works: list[tuple[StageWork, ...]] = []
        schedules: list[ScheduleWork | None] = []
        wall_seconds = 0.0
        for number in range(case.rounds):
            asked = prompts(case, self._seed, self._vocabulary_tokens, number)
            before = await self._target.stage_stats()
            done = await self._round(case, asked)
            after = await self._target.stage_stats()
            works.append(stage_work(before, after))
            schedules.append(schedule_work(before, after))
            wall_seconds += max(r.ended_seconds for r in done) - min(r.began_seconds for r in done)
            runs += done
        return CaseResult(case, tuple(runs), wall_seconds, added(works), added_schedules(schedules))

    async def _round(self, case: Case, asked: list[list[int]]) -> list[RequestRun]:
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self.request(ids, case.new_tokens), name=f"bench request {i}")
                    for i, ids in enumerate(asked)
                ]
        except BaseExceptionGroup as group:
            # One failure cancels the round; the first one is the reason.
            raise group.exceptions[0] from None
        return [task.result() for task in running]

    async def climb(
        self,
        lengths: Sequence[int],
        new_tokens: int,
        told: Callable[[Rung], None] = lambda _rung: None,
    ) -> ClimbResult:
        """Grow one conversation from rung to rung; ends early where a stage does not keep to its ledger.

        Each rung's prompt is the conversation so far, answers included, and new tokens up to the rung's length less
        the answer.

        Args:
            lengths: Lengths of the conversation in tokens, ascending; see `cases.rungs`.
            new_tokens: Tokens of each answer.
            told: Is given each rung.

        Raises:
            RemoteAnswerError: an answer was not what was asked for, or the plan changed.
            MacmeshError: a request failed.
        """
        conversation: list[int] = []
        found: list[Rung] = []
        complaint = ""
        for length in lengths:
            fresh = length - new_tokens - len(conversation)
            conversation += prompt(self._seed, self._vocabulary_tokens, fresh, "climb", length)
            before = await self._target.stage_stats()
            run = await self.request(conversation, new_tokens)
            stages = stage_work(before, await self._target.stage_stats())
            conversation += run.token_ids
            found.append(Rung(length, run, stages))
            told(found[-1])
            complaint = ledger_complaint(stages)
            if complaint:
                complaint = f"at {length:,} of {lengths[-1]:,} tokens: {complaint}"
                break
        return ClimbResult(tuple(found), lengths[-1], complaint)
