"""Runs a stage once before requests come, so that none of them waits for kernels to be compiled. Imports mlx."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from macmesh.v1 import types_pb2
from macmesh_daemon.engine.batch_caches import BatchRow, compose
from macmesh_daemon.engine.budget import add, budget_of_stages, times
from macmesh_daemon.engine.cache_traits import cache_traits
from macmesh_daemon.engine.limits import Limits
from macmesh_daemon.engine.row_sampling import choose_rows
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.worker.runner import Stage
from macmesh_daemon.worker.transfers import dtype_of

PROBE_TOKENS = 64
"""Enough for the kernels of prompts; what is learnt of the time of a whole chunk comes from it."""
MOST_CHUNK_SECONDS = 2.0
"""A whole chunk is run only where it will probably take no longer."""
MOST_SECONDS = 60.0
"""No batch is begun that will probably end later than so long after the beginning: whoever waits for the stage sees no
progress meanwhile, and gives it up after two minutes."""
_ROW_TOKENS = 2
"""Of each row of a batch: one before it is a row, one after."""


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """What was run."""

    decode_seconds: float = 0.0
    """The first step of one token, with all that had to be compiled for it."""
    probe_seconds: float = 0.0
    """The first step of several tokens, likewise."""
    chunk_tokens: int = 0
    """Tokens of the largest step that was run."""
    chunk_seconds: float = 0.0
    """How long that took, with nothing to compile but what its size needs."""
    batch_rows: int = 0
    """Rows of the largest batch that was run; 0: none was."""
    batches_seconds: float = 0.0
    """How long all batches took, with all that had to be compiled for each number of rows."""
    peak_bytes: int = 0
    """The most that MLX held since the process began: reading the weights, and this."""
    skipped: str = ""
    """Why nothing was run, for people."""


def warm_up(
    stage: Stage,
    *,
    context_tokens: int,
    chunk_tokens: int,
    kv_bits: int = 0,
    compiles: bool = True,
    batch_rows: int = 1,
    batch_done: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> WarmUp:
    """Runs a token, parts of a prompt and batches through this stage alone, with caches that are thrown away.

    All of it fits what the ledger charges: the caches are below those of one context, of which there is none yet, or
    of a batch that the plan has room for, and no step is larger than a prefill step. Afterwards MLX keeps no free
    buffers, and its peak counts from here on.

    Args:
        stage: loaded.
        context_tokens: of the plan.
        chunk_tokens: most tokens of a prefill step; below 2 runs none.
        kv_bits: of the plan's caches.
        compiles: the device compiles kernels at their first use, as GPUs do; else a step of one token is all.
        batch_rows: of the largest batch, as `most_batch_rows` says; GPUs' kernels differ with the number of rows, so
            batches of 2 rows, 3 and so on are run. Caches that cannot be batched are left alone.
        batch_done: called after each batch: so much goes on.
        clock: in seconds.
    """
    facts, began = WarmUp(), clock()
    if stage.payload_facts(1, 1) is None:
        facts = WarmUp(skipped=f"what the stages of {stage.architecture} hand on is not known beforehand")
    elif context_tokens > 0:
        facts = _run(stage, min(chunk_tokens, context_tokens) if compiles else 1, kv_bits, clock)
        if compiles and context_tokens >= _ROW_TOKENS:
            until = began + MOST_SECONDS
            rows, seconds = _run_batches(stage, batch_rows, kv_bits, until, batch_done, clock)
            facts = dataclasses.replace(facts, batch_rows=rows, batches_seconds=seconds)
    peak_bytes = mx.get_peak_memory()
    mx.clear_cache()
    mx.reset_peak_memory()
    return dataclasses.replace(facts, peak_bytes=peak_bytes)


@dataclasses.dataclass
class Warmth:
    """What this process has warmed up for already: its kernels are there."""

    kinds: frozenset[str] = frozenset()
    sizes: tuple[int, int, int, int] = (0, 0, 0, 0)

    def warm_up(
        self,
        stage: Stage,
        *,
        context_tokens: int,
        chunk_tokens: int,
        kv_bits: int,
        compiles: bool,
        batch_rows: int = 1,
        batch_done: Callable[[], None] = lambda: None,
    ) -> WarmUp:
        """`warm_up`, unless steps of these sizes have run through layers of all these kinds."""
        sizes = (min(context_tokens, chunk_tokens), chunk_tokens, kv_bits, batch_rows)
        if sizes == self.sizes and stage.kinds <= self.kinds:
            mx.clear_cache()
            mx.reset_peak_memory()
            return WarmUp(skipped="its kernels are there from the epoch before")
        facts = warm_up(
            stage,
            context_tokens=context_tokens,
            chunk_tokens=chunk_tokens,
            kv_bits=kv_bits,
            compiles=compiles,
            batch_rows=batch_rows,
            batch_done=batch_done,
        )
        if not facts.skipped:
            self.kinds = stage.kinds | (self.kinds if sizes == self.sizes else frozenset())
            self.sizes = sizes
        return facts


def has_gpu() -> bool:
    """Whether MLX computes on a GPU here."""
    return mx.default_device() == mx.Device(mx.gpu)


def most_batch_rows(deployment: types_pb2.Deployment) -> int:
    """Rows of the largest batch of short requests that the plan's stages have room for while it is made."""
    budget = budget_of_stages(
        [(stage.cache_cost_json, stage.cache_budget_bytes) for stage in deployment.stages],
        slots=deployment.slots,
        context_tokens=deployment.context_tokens,
    )
    row = add(budget.reserved(_ROW_TOKENS), budget.largest_piece(_ROW_TOKENS), budget.slack)
    rows = Limits.batch_rows
    while rows > 1 and not budget.fits(times(rows, row)):
        rows -= 1
    return rows


def _run(stage: Stage, chunk_tokens: int, kv_bits: int, clock: Callable[[], float]) -> WarmUp:
    def timed(tokens: int) -> float:
        began = clock()
        _step(stage, tokens, kv_bits)
        return clock() - began

    decode_seconds = timed(1)
    probe_tokens = min(PROBE_TOKENS, chunk_tokens)
    if probe_tokens <= 1:
        return WarmUp(decode_seconds=decode_seconds)
    probe_seconds = timed(probe_tokens)
    # Nothing is compiled any more in the second one.
    ran_tokens, ran_seconds = probe_tokens, timed(probe_tokens)
    if chunk_tokens > probe_tokens and ran_seconds * chunk_tokens / probe_tokens <= MOST_CHUNK_SECONDS:
        mx.clear_cache()
        ran_tokens, ran_seconds = chunk_tokens, timed(chunk_tokens)
    return WarmUp(decode_seconds, probe_seconds, ran_tokens, ran_seconds)


def _run_batches(
    stage: Stage,
    most_rows: int,
    kv_bits: int,
    until: float,
    done: Callable[[], None],
    clock: Callable[[], float],
) -> tuple[int, float]:
    """The rows of the largest batch, and the seconds of all."""
    if (
        most_rows > 1
        and cache_traits(stage.make_caches(1, kv_bits=kv_bits).entries, stage.architecture).unbatchable
    ):
        return 0, 0.0
    ran, began = 0, clock()
    now = last = began
    for rows in range(2, most_rows + 1):
        if 2 * now - last > until:
            break
        _batch_step(stage, rows, kv_bits)
        mx.clear_cache()
        ran, last, now = rows, now, clock()
        done()
    return ran, now - began


def _batch_step(stage: Stage, rows: int, kv_bits: int) -> None:
    singles = [_step(stage, 1, kv_bits, reserve_tokens=_ROW_TOKENS) for _ in range(rows)]
    batch = compose([BatchRow(single) for single in singles], _ROW_TOKENS).batch
    outputs = stage.step(_inputs(stage, rows, 1), batch)
    if stage.is_tail:
        sampled = choose_rows(outputs[0][:, -1, :], [Sampling()] * rows, [0] * rows, [None] * rows)
        outputs = list(sampled)
    stage.evaluate(outputs, batch)


def _step(stage: Stage, tokens: int, kv_bits: int, *, reserve_tokens: int = 0) -> Any:
    """Returns the caches."""
    caches = stage.make_caches(max(tokens, reserve_tokens), kv_bits=kv_bits)
    outputs = stage.step(_inputs(stage, 1, tokens), caches)
    if stage.is_tail:
        # As requests do: logits are computed after the last token alone.
        outputs = list(choose_rows(outputs[0][:, -1, :], [Sampling()], [0], [None])) if tokens == 1 else []
    stage.evaluate(outputs, caches)
    return caches


def _inputs(stage: Stage, rows: int, tokens: int) -> list[mx.array]:
    if stage.is_head:
        return [mx.zeros((rows, tokens), mx.uint32)]
    return [mx.zeros(fact.shape, dtype_of(fact.dtype)) for fact in stage.payload_facts(rows, tokens) or ()]
