"""Compares predicted cache bytes with real ones, for every architecture; run, it prints a table.

    PYTHONPATH=tests python -m zoo.cachetable [NAME ...]

Predictions go through a profile's JSON. The real side is mlx-lm's own model and caches: lazily, where only
shapes are wanted (`compare_shapes`), or computed (`compare_computed`), where what is held counts too.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from daemon.weights_only import own_bytes
from macmesh_daemon.engine.cache_members import members
from macmesh_daemon.engine.caches import StageCaches, allocate_at_once, round_up_tokens
from macmesh_daemon.engine.profile import profile_model
from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.engine.profile_views import CONTIGUOUS_WASTE_BYTES
from macmesh_daemon.engine.stand_ins import kernels_replaced
from macmesh_daemon.models.errors import LocalArchitectureError
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import CachePiece, ModelProfile, Scratch
from zoo import CONFIGS, METAL_ONLY, write_config

#: Steps below, at and above the window of 8 and the allocation step of 256, in prefill and decode. Apart from
#: single tokens, no length is one of those that a profile is traced with.
SHAPE_HISTORIES: tuple[tuple[int, ...], ...] = (
    (1, 1),
    (4, 4, 1),
    (9, 2),
    (255, 1, 1),
    (257, 2, 1),
    (130, 130, 130, 1),
    (256, 256, 1),
    (513, 17, 1),
)
#: Recurrent layers unroll every token in Python: fewer and shorter.
RECURRENT_SHAPE_HISTORIES: tuple[tuple[int, ...], ...] = (
    (4, 4, 1),
    (9, 2, 1),
    (257, 1),
)
#: Histories above this are compared once where every step computes or unrolls.
_LONG_TOKENS = 100
BATCH = 3
COMPUTED_SHORT, COMPUTED_LONG = (16, 16, 1, 1), (47, 1)
#: Architectures whose code looks at values, so that no step is lazy.
_EVALUATES = frozenset({"dbrx"})
#: Outputs that a request reserves beyond the steps taken.
_SPARE_TOKENS = 9


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture: what its caches are, and whether they were as predicted."""

    name: str
    kinds: str
    dtype: str
    equal: bool
    weights_equal: bool = False
    reason: str = ""

    @property
    def text(self) -> str:
        """The row as a line."""
        caches, weights = ("equal" if same else "NO" for same in (self.equal, self.weights_equal))
        return f"{self.name:22} {self.dtype:9} {caches:6} {weights:7} {self.kinds:60} {self.reason}".rstrip()


class DifferenceError(AssertionError):
    """A cache is not as predicted; says which, and after which steps."""


def is_recurrent(profile: ModelProfile) -> bool:
    """Whether layers keep a state that every token changes."""
    return any(piece.kind in {"constant", "recent"} for piece in pieces_of(profile))


def pieces_of(profile: ModelProfile) -> list[CachePiece]:
    """All cache pieces, those of no layer last."""
    layers = [piece for layer in profile.layers for piece in layer.caches]
    return [*layers, *profile.head_caches]


class Subject:
    """One architecture: its lazily built model, and its profile as it came back from JSON."""

    def __init__(self, name: str, folder: Path, dtype: str) -> None:
        mx.random.seed(0)  # cuts the chain of lazy keys that every model built before has left
        opened = read_folder(
            write_config(folder, name, torch_dtype=dtype, dtype=dtype), require_weights=False
        )
        self.name = name
        self.dtype = dtype
        self.model: Any = build(opened)
        # The caches do not ask for the scratch of the layers, which takes longest to trace.
        scratches = [Scratch()] * len(self.model.layers)
        profile = profile_model(self.model, opened, (), scratches)
        self.profile = ModelProfile.from_json_text(profile.to_json_text())
        self.pieces = pieces_of(self.profile)
        self.kinds = {piece.kind for piece in self.pieces}

    def compare_shapes(self) -> None:
        """Lazy steps, as mlx-lm allocates, for a batch, and preallocated; raises `DifferenceError`."""
        few = is_recurrent(self.profile) or self.name in _EVALUATES
        histories = RECURRENT_SHAPE_HISTORIES if few else SHAPE_HISTORIES
        for index, history in enumerate(histories):
            self._compare_history(history, 1, 0)
            if few and sum(history) > _LONG_TOKENS:
                continue
            if index % 2:
                self._compare_history(history, BATCH, 0)
            elif "growing" in self.kinds:
                self._compare_history(history, 1, sum(history) + _SPARE_TOKENS)

    def _compare_history(self, history: Sequence[int], batch: int, reserve: int) -> None:
        caches = new_caches(self.model, reserve)
        for index, tokens in enumerate(history):
            self.model(mx.zeros((batch, tokens), mx.int32), cache=caches)
            self._require_equal(caches, history[: index + 1], batch, reserve)

    def _require_equal(self, caches: Any, steps: Sequence[int], batch: int, reserve: int) -> None:
        real = sorted(_bytes_by_class(caches))
        predicted = sorted(
            (piece.source, piece.bytes_after(steps, batch=batch, reserve_tokens=_reserved(piece, reserve)))
            for piece in self.pieces
        )
        if real != predicted:
            raise DifferenceError(
                f"{self.name}, batch {batch}, {reserve} reserved, after {list(steps)}: "
                f"predicted {predicted}, real {real}"
            )

    def compare_computed(self) -> None:
        """Computed steps, with the states copied as the engine does, and without; raises `DifferenceError`."""
        mx.eval(self.model.parameters())
        self._run((2, 1), copied=False, checked=False)  # what the model makes once and keeps
        copied_states = bool(self.kinds & {"constant", "recent", "compressed"})
        self._run((16, 1) if self.kinds == {"growing"} else COMPUTED_SHORT, copied=not copied_states)
        if copied_states:
            self._run(COMPUTED_LONG, copied=True)
            self._run(COMPUTED_LONG, copied=False)

    def _run(self, history: Sequence[int], *, copied: bool, checked: bool = True) -> None:
        total = sum(history) + _SPARE_TOKENS
        caches = new_caches(self.model, total)
        stage = StageCaches(caches, tuple(range(len(caches))), total)
        idle = mx.get_active_memory()
        for index, tokens in enumerate(history):
            logits = self.model(mx.zeros((1, tokens), mx.int32), cache=caches)
            if copied and tokens > 1:
                stage.copy_states(stage.owned)
            mx.eval(logits, stage.owned_arrays())
            del logits
            if not checked:
                continue
            steps = history[: index + 1]
            self._require_equal(caches, steps, 1, total)
            reported = sum(size for _, size in _bytes_by_class(caches))
            held = mx.get_active_memory() - idle
            most = reported + sum(_kept_alive(piece, steps, copied=copied) for piece in self.pieces)
            if not reported <= held <= most:
                raise DifferenceError(
                    f"{self.name}, copied {copied}, after {list(steps)}: {held} bytes held, "
                    f"{reported} reported, at most {most} predicted"
                )
            charged = sum(
                piece.reserved_bytes(total)
                + (tokens > 1) * piece.prefill_bytes(total, tokens)
                + _donated(piece, steps, copied=copied)
                for piece in self.pieces
            )
            if held > charged:
                raise DifferenceError(
                    f"{self.name}, after {list(steps)}: {held} bytes held, {charged} charged by the ledger"
                )


def _kept_alive(piece: CachePiece, steps: Sequence[int], *, copied: bool) -> int:
    """What may be held beyond what is reported after the last of the steps."""
    donated = _donated(piece, steps, copied=copied)
    if piece.kind == "ring":
        return donated + (piece.view_bytes(steps[0]) if len(steps) == 1 else 0)
    return donated + (0 if copied and steps[-1] > 1 else piece.view_bytes(steps[-1]))


def _donated(piece: CachePiece, steps: Sequence[int], *, copied: bool) -> int:
    """mlx may compute into an input's buffer that is a little larger, as the timing has it.

    The ledger charges a page for every array. What is copied or joined always has a buffer of its own.
    """
    exact = {
        "growing": True,
        "chunked": True,
        "ring": len(steps) > 1,
        "constant": copied and steps[-1] > 1,
        "recent": True,
        "compressed": False,
    }[piece.kind]
    return 0 if exact else piece.array_count * CONTIGUOUS_WASTE_BYTES


def new_caches(model: Any, reserve: int) -> list[Any]:
    """mlx-lm's caches; preallocated as the engine does where ``reserve`` is not 0."""
    caches: list[Any] = make_prompt_cache(model)
    if reserve:
        for cache in caches:
            allocate_at_once(cache, round_up_tokens(reserve))
    return caches


def _reserved(piece: CachePiece, reserve: int) -> int:
    return reserve if piece.kind == "growing" else 0


def _bytes_by_class(caches: Sequence[Any]) -> list[tuple[str, int]]:
    flat = [member for cache in caches for member in members(cache)]
    return [(type(member).__name__, int(member.nbytes)) for member in flat if not member.empty()]


@contextmanager
def exact_memory() -> Iterator[None]:
    """While active, freed buffers are given back at once, and nothing starts a compiler."""
    limit = mx.set_cache_limit(0)
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()
        mx.set_cache_limit(limit)


def computed_dtype(name: str, folder: Path) -> str:
    """bfloat16 where the CPU has kernels for all of the architecture's operations, else float32."""
    if name in METAL_ONLY:
        return "bfloat16"
    mx.random.seed(0)
    model: Any = build(
        read_folder(
            write_config(folder, name, torch_dtype="bfloat16", dtype="bfloat16"), require_weights=False
        )
    )
    try:
        mx.eval(model(mx.zeros((1, 2), mx.int32), cache=make_prompt_cache(model)))
    except (RuntimeError, ValueError, TypeError):
        return "float32"
    return "bfloat16"


def compare(name: str, folder: Path) -> Row:
    """Compares one architecture: bfloat16 where the CPU computes it, float32 else, shapes alone for Metal's."""
    dtype = computed_dtype(name, folder)
    try:
        subject = Subject(name, folder, dtype)
    except LocalArchitectureError as problem:
        return Row(name, "", "", equal=False, reason=str(problem))
    kinds = ", ".join(sorted({f"{piece.kind} ({piece.source})" for piece in subject.pieces}))
    weights_equal = subject.profile.total_weight_bytes == own_bytes(subject.model)
    reason, equal = "", True
    try:
        if name in METAL_ONLY:
            dtype, reason = "shapes", "a Metal kernel: nothing is computed here"
            with kernels_replaced():
                subject.compare_shapes()
        else:
            subject.compare_shapes()
            subject.compare_computed()
    except DifferenceError as problem:
        equal, reason = False, str(problem)
    return Row(name, kinds, dtype, equal=equal, weights_equal=weights_equal, reason=reason)


def main(names: Sequence[str]) -> int:
    """Prints the table; returns 0 where all are equal but for those that cannot be profiled."""
    mx.set_default_device(mx.cpu)
    rows = []
    with exact_memory(), tempfile.TemporaryDirectory() as folder:
        for name in names or CONFIGS:
            row = compare(name, Path(folder) / name)
            rows.append(row)
            print(row.text, flush=True)  # noqa: T201  its output
    equal = sum(row.equal and row.weights_equal for row in rows)
    print(f"{len(rows)} architectures, {equal} equal in caches and weights")  # noqa: T201  its output
    return 0 if all((row.equal and row.weights_equal) or not row.kinds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
