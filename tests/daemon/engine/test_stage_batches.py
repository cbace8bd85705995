"""What stages keep while they run batches; what batches generate is compared for every architecture elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from macmesh_daemon.engine.batch_caches import BatchCaches, BatchRow, compose
from macmesh_daemon.engine.caches import StageCaches, arrays_of
from macmesh_daemon.engine.stage import StageModel, load_stage
from zoo import write_model
from zoo.splits import SEED, anatomy_of, uncompiled

PROMPTS = [[5, 9, 40, 3, 77, 8, 12, 90, 4, 4, 61], [101, 4, 7], [33]]


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    with uncompiled():
        yield


def merged(single: list[list[StageCaches]]) -> list[BatchCaches]:
    """The caches of each stage as a batch, from those of each request on each stage."""
    batches = []
    for of_stage in zip(*single, strict=True):
        batch = compose([BatchRow(caches) for caches in of_stage], 64).batch
        assert batch is not None
        batches.append(batch)
    return batches


def through(stages: list[StageModel], caches: list[Any], rows: list[list[int]]) -> mx.array:
    payload = [mx.array(rows, mx.int32)]
    for stage, held in zip(stages, caches, strict=True):
        facts = stage.payload_facts(len(rows), len(rows[0]))
        assert facts is not None
        assert [fact.shape for fact in facts] == [array.shape for array in payload]
        payload = stage.step(payload, held)
        stage.evaluate(payload, held)
    return payload[0]


def prefilled(stages: list[StageModel], prompt: list[int]) -> list[StageCaches]:
    caches = [stage.make_caches(64) for stage in stages]
    if prompt[:-1]:
        through(stages, caches, [prompt[:-1]])
    return caches


def test_caches_of_foreign_layers_keep_no_graph(tmp_path: Path) -> None:
    """Else each token would add to graphs that nothing ever evaluates."""
    folder = write_model(tmp_path / "m", "gpt_oss", seed=SEED, shards=1)
    layers = anatomy_of(folder).layer_count
    stages = [load_stage(folder, 0, 2, layers), load_stage(folder, 2, layers, layers)]
    single = [prefilled(stages, prompt) for prompt in PROMPTS[:2]]
    batch = merged(single)
    sets: list[list[Any]] = [prefilled(stages, PROMPTS[0]), list(batch)]
    for caches in sets:
        begun = [[0] for _ in range(1 if caches is sets[0] else 2)]
        for _ in range(3):
            through(stages, caches, begun)
        for stage, held in zip(stages, caches, strict=True):
            foreign = [held.entries[index] for index in range(layers) if index not in held.owned]
            assert len(foreign) == layers - len(stage.layers)
            offsets = [cache.offset for cache in foreign if isinstance(cache.offset, mx.array)]
            arrays = [*arrays_of([cache.state for cache in foreign]), *offsets]
            assert arrays
            for array in arrays:
                assert operations_behind(array) <= 2, "more than an array of nothing"


def operations_behind(array: mx.array) -> int:
    """Operations that evaluating it would take."""
    seen: list[str] = []
    mx.export_to_dot((lines := _Lines(seen)), array)
    return sum("shape=rectangle" in line or "shape =rectangle" in line for line in lines.found)


class _Lines:
    def __init__(self, found: list[str]) -> None:
        self.found = found

    def write(self, text: str) -> int:
        self.found.extend(text.splitlines())
        return len(text)
