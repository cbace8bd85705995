"""While caches are converted, old and new ones together hold no more than the stage has for caches."""

import collections
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from macmesh_daemon.engine.anatomy import examine
from macmesh_daemon.engine.budget import CacheBudget
from macmesh_daemon.engine.cache_house import CacheHouse
from macmesh_daemon.engine.cache_traits import cache_traits
from macmesh_daemon.engine.limits import Limits
from macmesh_daemon.engine.requests import Generated, Request
from macmesh_daemon.engine.scheduler import Scheduler
from macmesh_daemon.engine.steps import Operation, Sampled, Step, StepDone
from macmesh_placement.stagecache import StageCacheCost, cache_budget_bytes
from zoo.batchtable import Requests
from zoo.cachetable import Subject, exact_memory
from zoo.splits import uncompiled

CHUNK_TOKENS = 256
CONTEXT_TOKENS = 500
#: Positions of a batch's rows, kept as arrays, and what MLX rounds up.
SMALL_BYTES = 12_000


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    with uncompiled():
        yield


@dataclasses.dataclass
class Measured:
    """The stage of a whole model that does what a scheduler says, and the most that its caches held meanwhile."""

    requests: Requests
    house: CacheHouse
    base_bytes: int
    budget_bytes: int
    peaks: dict[str, int] = dataclasses.field(default_factory=dict)

    def apply(self, operation: Operation) -> None:
        mx.reset_peak_memory()
        before = mx.get_active_memory() - self.base_bytes
        self.house.apply(operation)
        held = mx.get_peak_memory() - self.base_bytes
        kind = type(operation).__name__
        self.peaks[kind] = max(self.peaks.get(kind, 0), held)
        assert held <= self.budget_bytes + SMALL_BYTES, (operation, before, held, self.budget_bytes)

    def run(self, step: Step) -> StepDone:
        for operation in step.operations:
            self.apply(operation)
        if step.kind == "operations":
            return StepDone(step.number)
        caches = self.house.caches_for(step)
        tokens = [[3]] * len(step.rows) if step.kind == "decode" else [list(step.tokens)]
        self.requests.step(tokens, caches)
        sampled = tuple(Sampled(3, -1.0) for _ in step.rows) if step.kind == "decode" else ()
        return StepDone(step.number, sampled, 0.01)


@pytest.mark.parametrize(("name", "slots"), [("llama", 4), ("gemma3_text", 6)])
def test_conversions_stay_within_the_budget(name: str, slots: int, tmp_path: Path) -> None:
    subject = Subject(name, tmp_path / "m", "float32")
    mx.eval(subject.model.parameters())
    requests = Requests(subject.model, examine(subject.model))
    traits = cache_traits(requests.caches(1).entries, requests.anatomy.architecture)
    cost = StageCacheCost(tuple(collections.Counter(subject.pieces).items()), 0)
    budget_bytes = cache_budget_bytes(
        cost, context_tokens=CONTEXT_TOKENS, slots=slots, prefill_chunk_tokens=CHUNK_TOKENS
    )
    limits = Limits(CONTEXT_TOKENS, slots, 1, CHUNK_TOKENS, lookahead=0, keep_least_tokens=4)
    scheduler = Scheduler(limits, CacheBudget([cost], [budget_bytes]), traits)
    with exact_memory():
        requests.step([[3, 4]], requests.caches(2))  # what MLX allocates once
        measured = Measured(requests, CacheHouse(requests.caches, 32), mx.get_active_memory(), budget_bytes)
        serve(scheduler, measured, random.Random(2))  # noqa: S311  tokens, no secrets
    assert {"Open", "Compose", "Close"} <= measured.peaks.keys()


def serve(scheduler: Scheduler, measured: Measured, drawn: random.Random) -> None:
    """Sixteen requests, most of which are cancelled after a few tokens."""
    now, left = 0.0, 16
    ended: list[list[int]] = []
    running: dict[str, list[int]] = {}
    results: collections.deque[StepDone] = collections.deque()
    while left or not scheduler.idle:
        if left and (drawn.random() < 0.3 or scheduler.idle):
            left -= 1
            asked = request(drawn, left, ended)
            scheduler.submit(asked)
            running[asked.request_id] = list(asked.prompt)
        now += 0.01
        while (step := scheduler.next_step(now)) is not None:
            results.append(measured.run(step))
        for effect in scheduler.done(results.popleft(), now) if results else []:
            if isinstance(effect, Generated):
                running[effect.request_id].append(3)
                if drawn.random() < 0.2 or effect.finish:
                    scheduler.cancel(effect.request_id)
                    ended.append(running.pop(effect.request_id))


def request(drawn: random.Random, number: int, ended: list[list[int]]) -> Request:
    """Some with much room; most go on with what another one has left behind."""
    prompt = list(drawn.choice(ended)) if ended and drawn.random() < 0.6 else [number + 10]
    prompt = [*prompt, *(drawn.randrange(10, 100) for _ in range(drawn.choice([5, 40])))][:180]
    room = drawn.choice([30, 250 - len(prompt), CONTEXT_TOKENS - len(prompt)])
    return Request(f"{number}", tuple(prompt), room)
