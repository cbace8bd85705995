"""The warm-up of stages of tiny models."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from macmesh.v1 import types_pb2
from macmesh_daemon.engine.batch_caches import BatchCaches
from macmesh_daemon.engine.cache_traits import CacheTraits
from macmesh_daemon.engine.stage import StageModel, load_stage
from macmesh_daemon.worker import warm_up as module
from macmesh_daemon.worker.warm_up import MOST_SECONDS, PROBE_TOKENS, Warmth, most_batch_rows, warm_up
from macmesh_rdma.messages.progress_page import ProgressWriter
from tinymodels import write_tiny_model

LAYERS = 4
PARTS = [(0, 4), (0, 2), (2, 3), (3, 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


class Watched:
    """A stage that notes the steps that it is asked for."""

    def __init__(self, stage: StageModel) -> None:
        self._stage = stage
        self.reserved: list[int] = []
        self.ran: list[int] = []
        self.batches: list[int] = []
        self.kv_bits: set[int] = set()
        self.evaluated: list[list[tuple[int, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def make_caches(self, reserve_tokens: int, *, kv_bits: int = 0) -> Any:
        self.reserved.append(reserve_tokens)
        self.kv_bits.add(kv_bits)
        return self._stage.make_caches(reserve_tokens, kv_bits=kv_bits)

    def step(self, inputs: list[mx.array], caches: Any) -> list[mx.array]:
        if isinstance(caches, BatchCaches):
            self.batches.append(len(caches.lengths))
        else:
            self.ran.append(caches.reserve_tokens)
        return self._stage.step(inputs, caches)

    def evaluate(self, results: list[mx.array], caches: Any) -> None:
        self.evaluated.append([tuple(result.shape) for result in results])
        self._stage.evaluate(results, caches)


class Clock:
    """Every look is so much later than the one before."""

    def __init__(self, step_seconds: float) -> None:
        self.now, self._step_seconds = 0.0, step_seconds

    def __call__(self) -> float:
        self.now += self._step_seconds
        return self.now


@pytest.mark.parametrize(("first", "end"), PARTS)
def test_every_part_runs_a_token_and_a_chunk_alone(folder: Path, first: int, end: int) -> None:
    stage = Watched(load_stage(folder, first, end, LAYERS))
    facts = warm_up(stage, context_tokens=4096, chunk_tokens=200, clock=Clock(0.25))
    assert stage.ran == stage.reserved == [1, PROBE_TOKENS, PROBE_TOKENS, 200]
    assert facts.skipped == ""
    assert (facts.decode_seconds, facts.chunk_tokens, facts.chunk_seconds) == (0.25, 200, 0.25)
    assert facts.peak_bytes >= stage.owned_bytes
    if end == LAYERS:
        assert stage.evaluated == [
            [(1,), (1,)],
            [],
            [],
            [],
        ]  # a token and its logarithm; no logits of prompts


def test_nothing_of_it_is_left(folder: Path) -> None:
    stage = load_stage(folder, 0, LAYERS, LAYERS)
    mx.clear_cache()
    before = mx.get_active_memory()
    warm_up(stage, context_tokens=4096, chunk_tokens=512)
    assert mx.get_cache_memory() == 0
    assert mx.get_active_memory() <= before
    assert mx.get_peak_memory() <= before


def test_a_chunk_that_would_take_long_is_left_out(folder: Path) -> None:
    stage = Watched(load_stage(folder, 0, LAYERS, LAYERS))
    facts = warm_up(stage, context_tokens=4096, chunk_tokens=1024, clock=Clock(0.2))  # 3.2 s, it would seem
    assert stage.ran == [1, PROBE_TOKENS, PROBE_TOKENS]
    assert facts.chunk_tokens == PROBE_TOKENS


@pytest.mark.parametrize(
    ("context", "chunk", "ran"),
    [(20, 512, [1, 20, 20]), (1, 512, [1]), (512, 0, [1]), (512, 1, [1]), (0, 512, [])],
)
def test_no_more_than_the_plan_holds(folder: Path, context: int, chunk: int, ran: list[int]) -> None:
    stage = Watched(load_stage(folder, 0, LAYERS, LAYERS))
    warm_up(stage, context_tokens=context, chunk_tokens=chunk, clock=Clock(0.0))
    assert stage.ran == ran


def test_a_stage_whose_input_is_not_known_is_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = load_stage(folder, 2, LAYERS, LAYERS)
    monkeypatch.setattr(stage, "payload_facts", lambda _rows, _tokens: None)
    watched = Watched(stage)
    facts = warm_up(watched, context_tokens=100, chunk_tokens=50)
    assert watched.ran == []
    assert "qwen3" in facts.skipped


def test_steps_of_several_tokens_show_their_layers(folder: Path) -> None:
    page = bytearray(16)
    stage = load_stage(folder, 1, 3, LAYERS)
    writer = ProgressWriter(page)
    shown: list[int] = []

    def note(index: int) -> None:
        writer.layer(index)
        shown.append(index)

    stage.layer_done = note
    warm_up(stage, context_tokens=100, chunk_tokens=30)
    assert shown == [1, 2, 1, 2]
    assert page != bytearray(16)


def test_where_nothing_is_compiled_one_token_is_all(folder: Path) -> None:
    stage = Watched(load_stage(folder, 0, LAYERS, LAYERS))
    facts = warm_up(stage, context_tokens=4096, chunk_tokens=200, compiles=False, clock=Clock(0.25))
    assert (stage.ran, facts.chunk_tokens) == ([1], 0)
    assert facts.decode_seconds > 0


@pytest.mark.parametrize(("first", "end"), PARTS)
def test_every_number_of_rows_is_run_where_kernels_are_compiled(folder: Path, first: int, end: int) -> None:
    stage = Watched(load_stage(folder, first, end, LAYERS))
    mx.clear_cache()
    before, told = mx.get_active_memory(), []
    facts = warm_up(
        stage,
        context_tokens=100,
        chunk_tokens=1,
        batch_rows=4,
        batch_done=lambda: told.append(len(stage.batches)),
    )
    assert stage.batches == [2, 3, 4]
    assert told == [1, 2, 3]
    assert (facts.batch_rows, facts.batches_seconds > 0) == (4, True)
    if end == LAYERS:
        assert stage.evaluated[-1] == [(4,), (4,)]
    assert mx.get_active_memory() <= before


@pytest.mark.parametrize(
    ("changes", "batches"),
    [
        ({"compiles": False}, []),
        ({"context_tokens": 1}, []),
        ({"batch_rows": 1}, []),
        # The fourth look is before the first batch, and the next one after it.
        ({"clock": Clock(MOST_SECONDS / 5)}, [2, 3]),
        ({"clock": Clock(MOST_SECONDS / 2)}, []),
    ],
)
def test_batches_are_left_out(folder: Path, changes: dict[str, Any], batches: list[int]) -> None:
    stage = Watched(load_stage(folder, 0, LAYERS, LAYERS))
    warm_up(stage, **{"context_tokens": 100, "chunk_tokens": 1, "batch_rows": 4, **changes})
    assert stage.batches == batches


def test_caches_that_cannot_be_batched_are_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Watched(load_stage(folder, 0, LAYERS, LAYERS))
    monkeypatch.setattr(module, "cache_traits", lambda _entries, _name: CacheTraits("mlx-lm has none", None))
    assert warm_up(stage, context_tokens=100, chunk_tokens=1, batch_rows=4).batch_rows == 0
    assert stage.batches == []


@pytest.mark.parametrize(
    ("slots", "context", "rows"), [(1, 256, 1), (1, 512, 1), (1, 1024, 3), (8, 256, 7), (2, 32768, 8)]
)
def test_batches_are_as_large_as_the_plan_has_room_for(slots: int, context: int, rows: int) -> None:
    # Rows of 256 tokens, and while they are made one of 32 caches of each more.
    deployment = types_pb2.Deployment(slots=slots, context_tokens=context)
    deployment.stages.add()
    assert most_batch_rows(deployment) == rows


def test_what_is_warm_is_not_warmed_up_again(folder: Path) -> None:
    warmth = Warmth()

    def ran(first: int, end: int, chunk: int = 40) -> list[int]:
        stage = Watched(load_stage(folder, first, end, LAYERS))
        facts = warmth.warm_up(stage, context_tokens=100, chunk_tokens=chunk, kv_bits=0, compiles=True)
        assert bool(facts.skipped) == (not stage.ran)
        return stage.ran

    assert ran(1, 2)
    assert not ran(1, 3), "its layers are all of one kind"
    assert ran(0, 3), "it is a head now"
    assert not ran(0, 1)
    assert ran(2, LAYERS), "it is a tail now"
    assert not ran(0, LAYERS)
    assert ran(1, 2, chunk=30), "other sizes need other kernels"
    assert ran(0, 2, chunk=30), "which are not those of before"
