"""Decodes batches of every architecture, and compares each request with what it gives alone; run, it prints a table.

    PYTHONPATH=tests python -m zoo.batchtable [NAME ...]

Three requests of different lengths: two begin together, one joins, one leaves, the last goes on by itself. The windows
of all models are crossed by then, also within the batch. Then the caches of the last are taken up by another request.
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from macmesh_daemon.engine.anatomy import Anatomy, examine
from macmesh_daemon.engine.batch_caches import BatchCaches, BatchRow, compose
from macmesh_daemon.engine.cache_traits import cache_traits
from macmesh_daemon.engine.caches import Caches, StageCaches, make_caches
from zoo import BROKEN, CONFIGS, METAL_ONLY, build_model
from zoo.splits import NEW_TOKENS, PROMPT, uncompiled

PROMPT_TOKENS = (8, len(PROMPT), 10)
GENERATED_TOKENS = (2, NEW_TOKENS, 3)
"""Of each request: alone, and in batches."""
CAPACITY_TOKENS = max(PROMPT_TOKENS) + NEW_TOKENS
CUT_DEPENDENT = ("plamo3", "phi3small")
"""Architectures whose logits in mlx-lm itself depend on how a prompt is cut into steps."""

NOT_COMPUTED = {**dict.fromkeys(METAL_ONLY, "a Metal kernel: nothing is computed here"), **BROKEN}
"""Architectures that say nothing here, with the reason."""


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture: whether batches and caches taken up are right; why there are no batches."""

    name: str
    equal: bool
    unbatchable: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """``equal``, ``alone`` or ``no``."""
        return "no" if not self.equal else "alone" if self.unbatchable else "equal"

    @property
    def text(self) -> str:
        """The row as a line."""
        return f"{self.name:22} {self.verdict:6} {self.seconds:5.1f} s {self.unbatchable or self.reason}".rstrip()


def prompt(name: str, tokens: int) -> list[int]:
    """Token ids that differ from model to model and length to length."""
    key = mx.random.key(sum(map(ord, name)) + tokens)
    drawn: Any = mx.random.randint(4, 300, (tokens,), key=key).tolist()
    return [int(token) for token in drawn]


class Runner(ABC):
    """Runs requests step by step: on a whole model, or as one of its stages."""

    @abstractmethod
    def caches(self, reserve_tokens: int) -> StageCaches:
        """New caches of a request."""

    @abstractmethod
    def step(self, tokens: Sequence[Sequence[int]], caches: Caches, *, wanted: bool = True) -> list[int]:
        """One step of some tokens for each row; where they are wanted, the most likely next tokens."""

    def prefill(self, tokens: Sequence[int], caches: StageCaches, chunk_tokens: int = len(PROMPT)) -> None:
        """All but the last token, in chunks."""
        rest = list(tokens[caches.length : -1])
        while rest:
            self.step([rest[:chunk_tokens]], caches, wanted=False)
            rest = rest[chunk_tokens:]

    def alone(self, tokens: Sequence[int], count: int) -> list[int]:
        """What a request generates by itself."""
        caches = self.caches(len(tokens) + count)
        self.prefill(tokens, caches)
        return self.decode(caches, [tokens[-1]], count)[0]

    def decode(self, caches: Caches, last: Sequence[int], count: int) -> list[list[int]]:
        """Tokens of each row, after the given ones."""
        found: list[list[int]] = [[] for _ in last]
        for _ in range(count):
            last = self.step([[token] for token in last], caches)
            for row, token in zip(found, last, strict=True):
                row.append(token)
        return found


@dataclass
class Requests(Runner):
    """Runs requests on a whole model as a worker does, without the worker."""

    model: Any
    anatomy: Anatomy
    kv_bits: int = 0

    @classmethod
    def of(cls, name: str, **overrides: Any) -> "Requests":
        """Requests on the model of that name."""
        model = build_model(name, **overrides)
        return cls(model, examine(model))

    def caches(self, reserve_tokens: int) -> StageCaches:
        """New caches of a request."""
        layers = range(self.anatomy.layer_count)
        return make_caches(self.model, self.anatomy, layers, reserve_tokens, kv_bits=self.kv_bits)

    def step(self, tokens: Sequence[Sequence[int]], caches: Caches, *, wanted: bool = True) -> list[int]:
        """See `Runner.step`."""
        caches.advance(len(tokens[0]))
        logits = self.model(mx.array([list(row) for row in tokens]), cache=caches.entries)
        if len(tokens[0]) > 1:
            caches.copy_states(range(len(caches.entries)))
        if not wanted:
            mx.eval(caches.owned_arrays())
            return []
        chosen = mx.argmax(logits[:, -1], axis=-1)
        mx.eval(chosen, caches.owned_arrays())
        found: Any = chosen.tolist()
        return [int(token) for token in found]

    @property
    def unbatchable(self) -> str:
        """Why its requests run alone; empty where they do not."""
        return cache_traits(self.caches(1).entries, self.anatomy.architecture).unbatchable


@dataclass(frozen=True, slots=True)
class Course:
    """What the three requests generated."""

    rows: list[list[int]]
    """Tokens of each; only the last runs where nothing is batched."""
    taken_up: int
    """So many tokens of the last one's caches were taken up by another request; 0: not tried."""
    more: list[int]
    """What that one generated."""

    def after(self, name: str) -> list[int]:
        """The prompt of the request that takes the caches up."""
        whole = [*prompt(name, PROMPT_TOKENS[2]), *self.rows[2]]
        return [*whole[: self.taken_up], *prompt("more", 4)]


def prompts_of(name: str) -> list[list[int]]:
    """Of the three requests."""
    return [prompt(name, PROMPT_TOKENS[0]), list(PROMPT), prompt(name, PROMPT_TOKENS[2])]


def course(runner: Runner, name: str, *, batches: bool, prefilled: StageCaches | None = None) -> Course:
    """Runs the requests in batches, and one that takes up what the last one leaves behind.

    Args:
        runner: on what.
        name: of the architecture.
        batches: else the last request runs alone, and no other does.
        prefilled: caches of the second request after all of its prompt but the last token, where they are there.
    """
    prompts = prompts_of(name)
    singles = [runner.caches(len(tokens) + NEW_TOKENS) for tokens in prompts]
    if prefilled is not None:
        singles[1] = prefilled
    for tokens, single in zip(prompts, singles, strict=True) if batches else [(prompts[2], singles[2])]:
        runner.prefill(tokens, single)
    rows: list[list[int]] = [[], [], []]
    left = singles[2]
    if batches:
        rows, left = batched(runner, prompts, singles)
    else:
        rows[2] = runner.decode(left, prompts[2][-1:], GENERATED_TOKENS[2])[0]
    if name in CUT_DEPENDENT:
        return Course(rows, 0, [])
    cut = left.length - 3
    found = Course(rows, cut if left.can_trim_to(cut) else left.length, [])
    left.trim_to(found.taken_up)
    again = found.after(name)
    left = left.resized(len(again) + 1)
    runner.prefill(again, left)
    return replace(found, more=runner.decode(left, again[-1:], 1)[0])


def difference(requests: Requests, name: str, found: Course, known: Sequence[int] = ()) -> str:
    """How a course differs from what each of its requests generates alone; empty where it does not.

    Args:
        requests: the whole model.
        name: of the architecture.
        found: the course.
        known: what mlx-lm alone generates after `PROMPT`, where that is known.
    """
    for index, (tokens, mine) in enumerate(zip(prompts_of(name), found.rows, strict=True)):
        if not mine:
            continue
        theirs = list(known) if index == 1 and known else requests.alone(tokens, len(mine))
        if mine != theirs:
            return f"request {index}: {mine} in batches, {theirs} alone"
    if not found.taken_up:
        return ""
    anew = requests.alone(found.after(name), len(found.more))
    return "" if found.more == anew else f"{found.taken_up} tokens taken up: {found.more}, anew: {anew}"


def batched(
    runner: Runner, prompts: Sequence[Sequence[int]], singles: Sequence[StageCaches]
) -> tuple[list[list[int]], StageCaches]:
    """The three requests in batches: 0 and 1; all; 1 and 2; 2 alone. And what the last one leaves behind.

    Args:
        runner: on what.
        prompts: of the requests.
        singles: their caches after the prompts but for the last tokens.
    """
    out: list[list[int]] = [[], [], []]

    def run(caches: Caches, rows: Sequence[int], count: int) -> None:
        last = [(out[row] or [prompts[row][-1]])[-1] for row in rows]
        for row, found in zip(rows, runner.decode(caches, last, count), strict=True):
            out[row] += found

    batch = _batch([BatchRow(singles[0]), BatchRow(singles[1])])
    run(batch, (0, 1), 1)
    batch = _batch([BatchRow(batch, 0), BatchRow(batch, 1), BatchRow(singles[2])])
    run(batch, (0, 1, 2), 1)
    batch = _batch([BatchRow(batch, 1), BatchRow(batch, 2)])
    run(batch, (1, 2), 1)
    left = compose([], CAPACITY_TOKENS, [BatchRow(batch, 1)], [batch.lengths[1]]).leaving[0]
    left = left.resized(CAPACITY_TOKENS)
    run(left, (2,), 1)
    assert tuple(map(len, out)) == GENERATED_TOKENS
    return out, left


def _batch(rows: Sequence[BatchRow]) -> BatchCaches:
    batch = compose(rows, CAPACITY_TOKENS).batch
    assert batch is not None
    return batch


def compare(
    name: str, requests: Requests | None = None, known: Sequence[int] = (), *, force: bool = False
) -> Row:
    """Compares one architecture.

    Args:
        name: of `zoo.CONFIGS`.
        requests: its model; by default it is made.
        known: what mlx-lm alone generates after `PROMPT`, where that is known.
        force: try batches though they are known not to work.
    """
    if name in NOT_COMPUTED:
        return Row(name, equal=False, reason=NOT_COMPUTED[name])
    began = time.monotonic()
    with uncompiled():
        unbatchable, reason = _compared(name, requests or Requests.of(name), known, force=force)
    return Row(name, not reason, unbatchable, reason, time.monotonic() - began)


def _compared(name: str, requests: Requests, known: Sequence[int], *, force: bool) -> tuple[str, str]:
    """Why it is not batched, and what differs."""
    unbatchable = "" if force else requests.unbatchable
    try:
        found = course(requests, name, batches=not unbatchable)
    except Exception as problem:  # noqa: BLE001  any failure of foreign code is the answer
        return "", f"{type(problem).__name__}: {' '.join(str(problem).split())[:150]}"
    return unbatchable, difference(requests, name, found, known)


def main(names: Sequence[str]) -> int:
    """Prints the table; returns 0 where every architecture that batches is equal."""
    mx.set_default_device(mx.cpu)
    rows = []
    for name in names or CONFIGS:
        rows.append(compare(name))
        print(rows[-1].text, flush=True)  # noqa: T201  its output
    alone = sum(row.equal and bool(row.unbatchable) for row in rows)
    equal = sum(row.equal for row in rows) - alone
    print(f"{len(rows)} architectures, {equal} equal in batches, {alone} run alone")  # noqa: T201  its output
    return 0 if all(row.equal or row.name in NOT_COMPUTED for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
