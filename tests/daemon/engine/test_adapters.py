"""Architectures whose layers share more than the hidden state, cut everywhere where they may be."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from macmesh_daemon.engine.errors import LocalStageError, LocalUnsplittableError
from macmesh_daemon.engine.handover import ArrayFacts
from macmesh_daemon.engine.stage import StageModel, load_stage
from zoo import write_model
from zoo.splits import SEED, anatomy_of, uncompiled


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    with uncompiled():
        yield


class Pipeline:
    """Stages in this process; what crosses is evaluated at every cut."""

    def __init__(self, folder: Path, cuts: tuple[int, ...], layers: int, reserve_tokens: int) -> None:
        bounds = [0, *cuts, layers]
        self.stages = [load_stage(folder, first, end, layers) for first, end in itertools.pairwise(bounds)]
        self.caches: list[Any] = [stage.make_caches(reserve_tokens) for stage in self.stages]

    def run(self, rows: list[list[int]]) -> mx.array:
        payload = [mx.array(rows, mx.int32)]
        for stage, caches in zip(self.stages, self.caches, strict=True):
            payload = stage.step(payload, caches)
            stage.evaluate(payload, caches)
        return payload[0]


def logits_of(folder: Path, cuts: tuple[int, ...], layers: int, steps: list[list[int]]) -> list[mx.array]:
    pipeline = Pipeline(folder, cuts, layers, sum(map(len, steps)))
    return [pipeline.run([step]) for step in steps]


STEPS = [[5, 9, 40, 3, 77, 8], [101, 4, 4, 19], [7], [250]]
SHARING = ["afm7", "gemma3n", "gemma4", "gemma4_moe", "hunyuan", "kimi_k3", "rwkv7", "talkie"]


@pytest.mark.parametrize("name", SHARING)
def test_every_cut_that_is_allowed_is_exact(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", name, seed=SEED, shards=1)
    anatomy = anatomy_of(folder)
    layers = anatomy.layer_count
    expected = logits_of(folder, (), layers, STEPS)
    # All at once: the stages are as small as can be, and each boundary is crossed at every step.
    for ours, theirs in zip(logits_of(folder, anatomy.cut_points, layers, STEPS), expected, strict=True):
        assert mx.array_equal(ours, theirs).item()


@pytest.mark.parametrize("name", ["afm7", "gemma3n", "rwkv7"])
def test_bfloat16_is_exact_too(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", name, seed=SEED, dtype="bfloat16", shards=1)
    layers = anatomy_of(folder).layer_count
    expected = logits_of(folder, (), layers, STEPS)
    for ours, theirs in zip(logits_of(folder, (1, 4), layers, STEPS), expected, strict=True):
        assert mx.array_equal(ours, theirs).item()


def test_choices_among_a_long_past_are_handed_on(tmp_path: Path) -> None:
    """deepseek_v41 with more compressed keys than are candidates, and more candidates than are chosen."""
    folder = write_model(tmp_path / "m", "deepseek_v41", seed=SEED, shards=1)
    anatomy = anatomy_of(folder)
    assert anatomy.cut_points == (1, 2, 5)
    steps = [[(i * i * 7 + 11 * i + part) % 320 for i in range(25)] for part in range(3)] + [[3], [9], [27]]
    expected = logits_of(folder, (), anatomy.layer_count, steps)
    pipeline = Pipeline(folder, (2, 5), anatomy.layer_count, sum(map(len, steps)))
    for step, theirs in zip(steps, expected, strict=True):
        assert mx.array_equal(pipeline.run([step]), theirs).item()
    assert pipeline.stages[2].payload_facts(1, 1) is None
    assert pipeline.stages[1].payload_facts(2, 7) == [
        ArrayFacts((2, 7, 4, 64), "float32"),
        ArrayFacts((2, 7, 4), "float32"),
    ]


def test_without_the_choices_the_rest_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would show nothing."""
    folder = write_model(tmp_path / "m", "deepseek_v41", seed=SEED, shards=1)
    steps = [[(i * i * 7 + 11 * i) % 320 for i in range(75)], [3]]
    expected = logits_of(folder, (), 8, steps)
    pipeline = Pipeline(folder, (5,), 8, 76)
    give = pipeline.stages[1]._extras.give

    def all_of_them(index: int, cut: int, arrays: list[mx.array], args: Any, kwargs: Any) -> Any:
        return give(index, cut, [mx.ones_like(array) for array in arrays], args, kwargs)

    monkeypatch.setattr(pipeline.stages[1]._extras, "give", all_of_them)
    assert not all(
        mx.array_equal(pipeline.run([step]), theirs).item()
        for step, theirs in zip(steps, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("llama", [(3, 7, 64)]),
        ("rwkv7", [(3, 7, 64), (3, 7, 2, 32)]),
        ("talkie", [(3, 7, 64), (3, 7, 64)]),
        ("gemma3n", [(4, 3, 7, 64), (7, 3, 7, 16)]),
        ("gemma4", [(3, 7, 64), (7, 3, 7, 16)]),
        ("gemma4_moe", [(3, 7, 64)]),
        ("hunyuan", [(3, 7, 64), (3, 7, 32), (3, 7, 32)]),
        ("kimi_k3", [(3, 7, 64), (1, 3, 7, 64), (1, 3, 7)]),
    ],
)
def test_what_comes_in_is_known_before(name: str, facts: list[tuple[int, ...]], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", name, shards=1)
    layers = anatomy_of(folder).layer_count
    head, tail = load_stage(folder, 0, 3, layers), load_stage(folder, 3, layers, layers)
    assert tail.payload_facts(3, 7) == [ArrayFacts(shape, "float32") for shape in facts]
    assert head.payload_facts(3, 7) == [ArrayFacts((3, 7), "int32")]


def test_a_cut_where_something_would_be_lost_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "gemma4", shards=1)
    with pytest.raises(LocalUnsplittableError, match=r"before layer 5: layers 6 to 9.*one of 1, 2, 3, 4"):
        load_stage(folder, 5, 10, 10)
    with pytest.raises(LocalUnsplittableError, match="before layer 5"):
        load_stage(folder, 0, 5, 10)
    looped = write_model(tmp_path / "n", "nanbeige", shards=1)
    with pytest.raises(LocalUnsplittableError, match=r"more than once in one step.*one stage"):
        load_stage(looped, 0, 2, 6)
    assert isinstance(load_stage(looped, 0, 6, 6), StageModel)


def test_a_stage_wants_all_that_it_needs(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "talkie", shards=1)
    stage = load_stage(folder, 2, 6, 6)
    with pytest.raises(LocalStageError, match="1 arrays came in where this stage takes 2"):
        stage.step([mx.zeros((1, 1, 64))], stage.make_caches(4))
