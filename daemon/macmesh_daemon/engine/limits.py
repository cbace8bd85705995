"""What the plan allows, what the model's caches allow, and what the schedule counts. Plain data."""

import dataclasses
from typing import Protocol


class CacheTraits(Protocol):
    """What the schedule must know of a model's caches; the same on every stage."""

    @property
    def unbatchable(self) -> str:
        """Why requests cannot be rows of one batch; empty: they can."""

    @property
    def trim_below_tokens(self) -> int | None:
        """Up to which length caches can be cut back; None: any; 0: never."""


@dataclasses.dataclass(frozen=True)
class AnyCaches:
    """Caches that can be batched and cut back as one likes."""

    unbatchable: str = ""
    trim_below_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the plan allows, and how the schedule shares it out."""

    context_tokens: int
    """Most tokens of one request, prompt and output together."""
    slots: int
    """Whole contexts that the plan holds caches for. Requests that are shorter share them."""
    stages: int
    """Stages of the pipeline: so many batches keep all of them busy."""
    prefill_chunk_tokens: int
    """Most prompt tokens in one step; the ledger's scratch is for so many."""
    waiting: int = 64
    """Requests that wait; more are refused."""
    step_deadline_seconds: float = 30.0
    """Longest time from the moment at which a step is the next to be done to its result."""
    lookahead: int = 1
    """Decode steps that a row may have on their way beside the one that runs: 1, or 0 where its token must be known."""
    slots_at_once: int = 32
    """Most requests that run at once."""
    batch_rows: int = 8
    """Most rows of a batch; the ledger's line for sampling covers so many."""
    prefill_slice_seconds: float = 0.25
    """How much longer a running request may wait for its next token because of others' prompts."""
    prefill_least_tokens: int = 64
    """Least prompt tokens in one step, however slow they are."""
    prefill_overhead_tokens: int = 64
    """What a prefill step costs besides its tokens, in tokens, before it was measured."""
    prefill_even_least_tokens: int = 256
    """Least tokens of chunks that are made smaller so that the stages behind can begin earlier."""
    bypasses: int = 8
    """So many later requests may be taken before one that does not fit yet."""
    bypass_seconds: float = 30.0
    """So long may later requests be taken before one that does not fit yet."""
    entries: int = 64
    """Most finished requests' caches that are kept."""
    keep_least_tokens: int = 16
    """Caches of fewer tokens are neither kept nor taken up."""


@dataclasses.dataclass(frozen=True)
class SchedulerStats:
    """Counts since the start, and what there is now."""

    running: int
    waiting: int
    entries: int
    batches: int
    """Batches of two or more rows."""
    steps: int
    prompts: int
    """Requests that were begun."""
    prompt_tokens: int
    """Tokens of their prompts."""
    prefix_hits: int
    """Those that took up kept caches."""
    reused_tokens: int
    """Prompt tokens that needed no work because of it."""
    generated_tokens: int
    cache_bytes: tuple[int, ...]
    """For each stage: bytes spoken for, kept caches included."""
    cache_budget_bytes: tuple[int, ...]
