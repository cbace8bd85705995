"""What the head decides, step by step, and what comes of it. Plain data, no mlx.

Every stage carries out the same steps in the same order, so that their caches agree by construction. A step first
changes caches (its operations, in order), then computes:

* ``prefill``: one request, several tokens of its prompt, nothing is sampled;
* ``decode``: one token for each row, and one sampled after each;
* ``operations``: nothing; it only carries operations.

A request holds a *slot* while it runs. Its caches are its own (``alone``) or rows of a *batch*: a decode step of
several rows needs them composed. A finished request's caches may stay as an *entry*, to be taken up by a later
request with the same beginning.
"""

import dataclasses
from typing import Literal

from macmesh_daemon.engine.sampling_parameters import Sampling

StepKind = Literal["prefill", "decode", "operations"]


@dataclasses.dataclass(frozen=True, slots=True)
class Reuse:
    """A kept entry becomes a slot's caches."""

    entry: int
    tokens: int
    """So many tokens of it stay; the rest is cut off. At most what it holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Open:
    """A request takes a slot."""

    slot: int
    request_id: str
    reserve_tokens: int
    """Most tokens that will go through: the prompt and all that is generated."""
    sampling: Sampling
    history: tuple[int, ...] = ()
    """The prompt, where a logit processor of the request looks at it; else empty."""
    reuse: Reuse | None = None
    """None: the caches begin empty."""


@dataclasses.dataclass(frozen=True, slots=True)
class Compose:
    """Exactly these slots are the rows of a batch from now on, in this order.

    Slots that were rows before and are not any more have been closed in the same step before. The remaining rows
    keep their order; new ones stand after them.
    """

    batch: int
    slots: tuple[int, ...]
    """Empty: the batch ends."""
    capacity_tokens: int
    """Length that the batch's caches are allocated for: the longest row now, and the most that any has still to go."""


@dataclasses.dataclass(frozen=True, slots=True)
class Close:
    """A request gives its slot up. Where it is a row of a batch, a `Compose` without it follows in the same step."""

    slot: int
    request_id: str
    keep_as: int | None = None
    """Number of the entry that its caches become; None: they are freed."""
    keep_tokens: int = 0
    """The entry's length; what was computed beyond it is cut off."""
    keep_reserve_tokens: int = 0
    """Tokens that the entry is allocated for from now on; the slot's reservation: its caches stay as they are."""


@dataclasses.dataclass(frozen=True, slots=True)
class Forget:
    """An entry is freed."""

    entry: int


Operation = Open | Compose | Close | Forget


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One request's part in a step."""

    slot: int
    request_id: str
    offset: int
    """Position of its first token in this step, which is the number of tokens in its caches."""
    token: int | None = None
    """``decode``: the token to go through; None: the one that the slot's last decode step sampled."""
    sample_index: int = 0
    """``decode``: tokens generated before the one that this step samples."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step, to be run by every stage in the order of the numbers."""

    number: int
    """Counts from 1."""
    kind: StepKind
    operations: tuple[Operation, ...] = ()
    rows: tuple[Row, ...] = ()
    """``prefill``: one; ``decode``: one or more."""
    tokens: tuple[int, ...] = ()
    """``prefill``: the tokens."""
    batch: int | None = None
    """``decode``: the batch whose rows these are, in its order; None: one row that is alone."""

    @property
    def token_count(self) -> int:
        """Tokens of each row."""
        return len(self.tokens) if self.kind == "prefill" else min(1, len(self.rows))


@dataclasses.dataclass(frozen=True, slots=True)
class Sampled:
    """What a decode step chose for one row."""

    token: int
    logprob: float
    """Natural logarithm of its probability under the model, before any filter or processor."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepDone:
    """A step's end, from the tail; results come in the order of the steps."""

    number: int
    sampled: tuple[Sampled, ...] = ()
    """``decode``: one for each row, in the order of the rows; else empty."""
    seconds: float = 0.0
    """How long the slowest stage was busy with it, as far as the tail knows; 0 where it is not known."""
