"""A stream that runs while a long prompt arrives: what its reader notices."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from macmesh_daemon.bench.cases import prompt
from macmesh_daemon.bench.errors import LocalBenchArgumentError, RemoteAnswerError
from macmesh_daemon.bench.requests import Arrival, RequestRun
from macmesh_daemon.bench.stages import added, stage_work
from macmesh_daemon.bench.statistics import Spread

if TYPE_CHECKING:
    from macmesh_daemon.bench.results import Served
    from macmesh_daemon.bench.stages import StageWork
    from macmesh_daemon.bench.target import Target
    from macmesh_daemon.clock import Clock

#: Tokens of the stream's own prompt.
STREAM_PROMPT_TOKENS: Final = 64
#: The long prompt is sent after so many tokens of the stream.
STEADY_TOKENS: Final = 32
#: Most tokens that the stream may have; it is left once the long prompt's first token is there.
STREAM_TOKENS: Final = 8192


@dataclass(frozen=True, slots=True)
class ArrivalResult:
    """One stream and one long prompt, some times.

    Attributes:
        prompt_tokens: Of the long prompt.
        rounds: How often.
        steady_seconds: Between two responses of the stream before the prompt is sent.
        during_seconds: Between two responses of the stream from the sending of the prompt to its first token.
        first_token_seconds: Of the long prompt, for each round.
        stages: What the stages did meanwhile, and their memory after it.
    """

    prompt_tokens: int
    rounds: int
    steady_seconds: tuple[float, ...]
    during_seconds: tuple[float, ...]
    first_token_seconds: tuple[float, ...]
    stages: tuple[StageWork, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "rounds": self.rounds,
            "steady_ms": _milliseconds(self.steady_seconds),
            "during_ms": _milliseconds(self.during_seconds),
            "first_token_seconds": [round(seconds, 4) for seconds in self.first_token_seconds],
            "stages": [stage.to_json() for stage in self.stages],
        }


def gaps(
    stream: RequestRun, sent_seconds: float, first_token_seconds: float
) -> tuple[list[float], list[float]]:
    """Times between responses before a moment, and from it to another one; pure.

    Not between tokens: what comes late and then at once was late. A gap that the first moment lies in counts as one
    of the later ones, and so does the one in which the second moment lies.
    """
    steady: list[float] = []
    during: list[float] = []
    for before, after in itertools.pairwise(arrival.at_seconds for arrival in stream.arrivals):
        if after <= sent_seconds:
            steady.append(after - before)
        elif before < first_token_seconds:
            during.append(after - before)
    return steady, during


async def measure_arrival(
    target: Target,
    clock: Clock,
    served: Served,
    *,
    prompt_tokens: int,
    rounds: int,
    seed: int,
    vocabulary: int,
) -> ArrivalResult:
    """Runs a stream, sends a long prompt meanwhile, and takes the times between the stream's responses.

    Args:
        target: What to measure.
        clock: The client's clock.
        served: What it serves.
        prompt_tokens: Of the long prompt.
        rounds: How often; every round has prompts of its own.
        seed: Of the prompts.
        vocabulary: Prompts are drawn below this.

    Raises:
        LocalBenchArgumentError: two such requests do not fit at once.
        RemoteAnswerError: the stream ended before the long prompt's first token, or the plan changed.
        MacmeshError: a request failed.
    """
    most = min(STREAM_TOKENS, served.context_tokens - STREAM_PROMPT_TOKENS)
    if served.slots < 2 or prompt_tokens >= served.context_tokens or most <= STEADY_TOKENS:  # noqa: PLR2004  two requests
        raise LocalBenchArgumentError(
            f"a stream beside a prompt of {prompt_tokens} tokens needs two slots and a context above that; the plan "
            f"has {served.slots} and {served.context_tokens}: load the model with --slots 2 and a longer --context"
        )
    steady: list[float] = []
    during: list[float] = []
    firsts: list[float] = []
    works: list[tuple[StageWork, ...]] = []
    for number in range(rounds):
        stream_prompt = prompt(seed, vocabulary, STREAM_PROMPT_TOKENS, "arrival stream", number)
        long_prompt = prompt(seed, vocabulary, prompt_tokens, "arrival", number)
        before = await target.stage_stats()
        stream, sent, first = await _round(target, clock, stream_prompt, most, long_prompt)
        works.append(stage_work(before, await target.stage_stats()))
        if stream.ended_seconds < first:
            raise RemoteAnswerError(
                f"the stream ended after {most} tokens, before the first one of the prompt of {prompt_tokens}; load "
                "the model with a longer --context"
            )
        earlier, later = gaps(stream, sent, first)
        steady += earlier
        during += later
        firsts.append(first - sent)
    return ArrivalResult(prompt_tokens, rounds, tuple(steady), tuple(during), tuple(firsts), added(works))


class _Round:
    """One stream, and the long prompt that is sent while it runs."""

    def __init__(self, target: Target, clock: Clock) -> None:
        self._target = target
        self._clock = clock
        self._runs = asyncio.Event()
        self.arrivals: list[Arrival] = []
        self.sent_seconds = 0.0
        self.first_token_seconds = 0.0
        """0 until there is one."""

    async def read(self, stream_prompt: list[int], most: int) -> None:
        """The stream, until a response after the long prompt's first token."""
        tokens = 0
        async with aclosing(self._target.generate(stream_prompt, most)) as responses:
            async for ids in responses:
                if ids:
                    self.arrivals.append(Arrival(self._clock.now(), ids))
                    tokens += len(ids)
                if tokens >= STEADY_TOKENS:
                    self._runs.set()
                if self._over():
                    break
        self._runs.set()

    async def send(self, long_prompt: list[int]) -> None:
        """The long prompt, once the stream runs."""
        await self._runs.wait()
        self.sent_seconds = self._clock.now()
        async with aclosing(self._target.generate(long_prompt, 1)) as responses:
            async for ids in responses:
                if ids:
                    self.first_token_seconds = self._clock.now()

    def _over(self) -> bool:
        return 0 < self.first_token_seconds <= (self.arrivals[-1].at_seconds if self.arrivals else 0.0)


async def _round(
    target: Target, clock: Clock, stream_prompt: list[int], most: int, long_prompt: list[int]
) -> tuple[RequestRun, float, float]:
    """The stream, and when the long prompt was sent and answered."""
    began = clock.now()
    both = _Round(target, clock)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(both.read(stream_prompt, most), name="bench stream")
            tasks.create_task(both.send(long_prompt), name="bench long prompt")
    except BaseExceptionGroup as group:
        # One failure cancels the other request; the first one is the reason.
        raise group.exceptions[0] from None
    if not both.arrivals or not both.first_token_seconds:
        raise RemoteAnswerError("a request that no end-of-sequence token may end gave no token")
    run = RequestRun(len(stream_prompt), began, tuple(both.arrivals))
    return run, both.sent_seconds, both.first_token_seconds


def _milliseconds(seconds: tuple[float, ...]) -> dict[str, float | int]:
    spread = Spread.of(seconds)
    return {
        "count": spread.count,
        "p50": round(1e3 * spread.p50, 3),
        "p95": round(1e3 * spread.p95, 3),
        "p99": round(1e3 * spread.p99, 3),
        "largest": round(1e3 * spread.largest, 3),
    }
