"""Splits a tiny model of an architecture into stages and compares what they generate with mlx-lm alone.

The prompt goes through in chunks that cross the windows of 8 tokens, then tokens are decoded past the window.
Tokens and the bits of all log probabilities have to be those of ``generate_step`` on the whole model.
"""

import hashlib
import itertools
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from macmesh_daemon.engine.anatomy import Anatomy, examine
from macmesh_daemon.engine.handover import dtype_name
from macmesh_daemon.engine.stage import StageModel
from macmesh_daemon.engine.stand_ins import kernels_replaced
from zoo import BROKEN, METAL_ONLY

SEED = 71
PROMPT = tuple((11 * i * i + 5 * i + 7) % 300 + 4 for i in range(11))
CHUNK_TOKENS = 5
NEW_TOKENS = 3

NOT_RUN = {
    **dict.fromkeys(METAL_ONLY, "not run: its forward pass is a Metal kernel"),
    **{name: f"not run anywhere: {reason}" for name, reason in BROKEN.items()},
}
"""Architectures that cannot be run here, with the reason."""


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture, split in one way."""

    name: str
    cuts: tuple[int, ...]
    equal: bool
    """Tokens and log probabilities of a request alone."""
    batches: str
    """``equal``: requests in batches are as they are alone; ``alone``: there are no batches; ``-``: not run in this
    split; else ``no``."""
    reason: str = ""
    """Why it was not split, or not everywhere, or is not batched; or what differed."""

    @property
    def text(self) -> str:
        """The row as a line."""
        cuts = ",".join(map(str, self.cuts)) or "-"
        verdict = "equal" if self.equal else "no"
        split_up = f"{self.name:22} {len(self.cuts) + 1} {cuts:4}"
        return f"{split_up} {verdict:6} {self.batches:6} {self.reason}".rstrip()


@dataclass(frozen=True, slots=True)
class Job:
    """What the stages of one split do."""

    name: str
    folder: str
    bounds: tuple[int, ...]
    """First layers of the stages, and the number of layers."""
    course: str = ""
    """``batches`` or ``alone``: after a request by itself, three in batches or one that caches are taken up of."""

    @property
    def stages(self) -> int:
        """How many."""
        return len(self.bounds) - 1

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        """Reads `to_json`'s form."""
        fields: dict[str, Any] = {
            name: tuple(part) if isinstance(part, list) else part for name, part in value.items()
        }
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Generated:
    """Tokens, and a digest of the log probabilities of the whole vocabulary at each."""

    tokens: list[int]
    digests: list[str]


def reference(model: Any) -> Generated:
    """mlx-lm alone."""
    steps = generate_step(mx.array(PROMPT), model, max_tokens=NEW_TOKENS, prefill_step_size=CHUNK_TOKENS)
    pairs = [(int(token), digest(logprobs)) for token, logprobs in steps]
    return Generated([token for token, _ in pairs], [found for _, found in pairs])


def choice(logits: mx.array) -> tuple[int, str]:
    """The likeliest token after the last one, and the digest."""
    last = logits[:, -1, :]
    logprobs = last - mx.logsumexp(last, axis=-1, keepdims=True)
    token: Any = mx.argmax(logprobs, axis=-1).item()
    return int(token), digest(logprobs)


def digest(logprobs: mx.array) -> str:
    """Of the bits."""
    return hashlib.sha256(bytes(mx.view(logprobs.reshape(-1), mx.uint8))).hexdigest()


def require_foretold(stage: StageModel, payload: list[mx.array], rows: int, tokens: int) -> None:
    """Lets pass what is as the stage foretold it, where it did."""
    expected = stage.payload_facts(rows, tokens)
    real = [(array.shape, dtype_name(array.dtype)) for array in payload]
    if expected is not None and real != [(fact.shape, fact.dtype) for fact in expected]:
        raise AssertionError(f"layer {stage.layers.start}: {real} came in, {expected} was foretold")


@contextmanager
def uncompiled() -> Iterator[None]:
    """On the CPU, mlx starts a C++ compiler for each fused kernel."""
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def anatomy_of(folder: Path) -> Anatomy:
    """Of a written model."""
    with kernels_replaced():
        return examine(load_model(folder, lazy=True)[0])


def chosen_cuts(name: str, anatomy: Anatomy) -> list[tuple[int, ...]]:
    """One split into two stages and one into three; both have the same first stage.

    The cuts are drawn from those that make stages of different sizes; where a model may not be cut everywhere,
    they are the last allowed ones, as just behind them something is lost.
    """
    allowed = anatomy.cut_points
    if len(allowed) < 2:  # three stages have two cuts
        return [allowed]
    if anatomy.cut_reason:
        both = allowed[-2:]
    else:
        uneven = [
            pair
            for pair in itertools.combinations(allowed, 2)
            if all(is_uneven(anatomy.layer_count, pair[:count]) for count in (1, 2))
        ]
        seeded = random.Random(zlib.crc32(name.encode()) + SEED)  # noqa: S311  draws cuts, keeps no secret
        both = seeded.choice(uneven)
    return [both[:1], both]


def is_uneven(layer_count: int, cuts: tuple[int, ...]) -> bool:
    """Whether the stages differ in size."""
    bounds = (0, *cuts, layer_count)
    return len({end - first for first, end in itertools.pairwise(bounds)}) > 1
