"""Runs a stage once before requests come, so that none of them waits for kernels to be compiled. Imports mlx."""

import dataclasses
import time
from collections.abc import Callable

import mlx.core as mx

from macmesh_daemon.engine.row_sampling import choose_rows
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.worker.runner import Stage
from macmesh_daemon.worker.transfers import dtype_of

PROBE_TOKENS = 64
"""Enough for the kernels of prompts; what is learnt of the time of a whole chunk comes from it."""
MOST_CHUNK_SECONDS = 2.0
"""A whole chunk is run only where it will probably take no longer."""


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
    clock: Callable[[], float] = time.perf_counter,
) -> WarmUp:
    """Runs a step of one token and steps of a prompt through this stage alone, with caches that are thrown away.

    All of it fits what the ledger charges: the caches are below those of one context, of which there is none yet, and
    no step is larger than a prefill step. Afterwards MLX keeps no free buffers, and its peak counts from here on.

    Args:
        stage: loaded.
        context_tokens: of the plan.
        chunk_tokens: most tokens of a prefill step; below 2 runs none.
        kv_bits: of the plan's caches.
        compiles: the device compiles kernels at their first use, as GPUs do; else a step of one token is all.
        clock: in seconds.
    """
    facts = WarmUp()
    if stage.payload_facts(1, 1) is None:
        facts = WarmUp(skipped=f"what the stages of {stage.architecture} hand on is not known beforehand")
    elif context_tokens > 0:
        facts = _run(stage, min(chunk_tokens, context_tokens) if compiles else 1, kv_bits, clock)
    peak_bytes = mx.get_peak_memory()
    mx.clear_cache()
    mx.reset_peak_memory()
    return dataclasses.replace(facts, peak_bytes=peak_bytes)


@dataclasses.dataclass
class Warmth:
    """What this process has warmed up for already: its kernels are there."""

    kinds: frozenset[str] = frozenset()
    sizes: tuple[int, int, int] = (0, 0, 0)

    def warm_up(
        self, stage: Stage, *, context_tokens: int, chunk_tokens: int, kv_bits: int, compiles: bool
    ) -> WarmUp:
        """`warm_up`, unless steps of these sizes have run through layers of all these kinds."""
        sizes = (min(context_tokens, chunk_tokens), chunk_tokens, kv_bits)
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
        )
        if not facts.skipped:
            self.kinds = stage.kinds | (self.kinds if sizes == self.sizes else frozenset())
            self.sizes = sizes
        return facts


def has_gpu() -> bool:
    """Whether MLX computes on a GPU here."""
    return mx.default_device() == mx.Device(mx.gpu)


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


def _step(stage: Stage, tokens: int, kv_bits: int) -> None:
    caches = stage.make_caches(tokens, kv_bits=kv_bits)
    inputs = [mx.zeros((1, tokens), mx.uint32)]
    if not stage.is_head:
        inputs = [mx.zeros(fact.shape, dtype_of(fact.dtype)) for fact in stage.payload_facts(1, tokens) or ()]
    outputs = stage.step(inputs, caches)
    if stage.is_tail:
        # As requests do: logits are computed after the last token alone.
        outputs = list(choose_rows(outputs[0][:, -1, :], [Sampling()], [0], [None])) if tokens == 1 else []
    stage.evaluate(outputs, caches)
