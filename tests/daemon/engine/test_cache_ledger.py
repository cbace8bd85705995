"""What a stage's caches hold is what the ledger charges, or less."""

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from macmesh_daemon.engine.anatomy import examine
from macmesh_daemon.engine.batch_caches import BatchRow, compose
from macmesh_daemon.engine.cache_traits import cache_traits
from macmesh_daemon.engine.caches import make_caches
from zoo import BROKEN, CONFIGS, METAL_ONLY
from zoo.batchtable import Requests
from zoo.cachetable import Subject
from zoo.splits import uncompiled

#: Prompt, reservation and capacity of each row: below and beyond the windows, and beyond one allocation.
PROMPTS, RESERVED, CAPACITY, KEPT = (3, 20, 12), (30, 300, 40), 290, 14
NAMES = (
    "llama",
    "gemma3_text",
    "gpt_oss",
    "llama4",
    "qwen3_next",
    "recurrent_gemma",
    "longcat_flash_ngram",
    "deepseek_v41",
    "baichuan_m1",
)


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    with uncompiled():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_caches_hold_what_is_charged(name: str, tmp_path: Path) -> None:
    assert name in CONFIGS.keys() - METAL_ONLY - BROKEN.keys()
    subject = Subject(name, tmp_path / "m", "float32")
    mx.eval(subject.model.parameters())
    requests = Requests(subject.model, examine(subject.model))
    exact = subject.kinds == {"growing"}

    def charged(tokens: int) -> int:
        return sum(piece.reserved_bytes(tokens) for piece in subject.pieces)

    def require(held: int, most: int) -> None:
        assert 0 < held <= most
        assert not exact or held == most

    singles = []
    for tokens, reserve in zip(PROMPTS, RESERVED, strict=True):
        single = requests.caches(reserve)
        requests.prefill([5] * (tokens + 1), single)
        requests.decode(single, [5], 1)
        require(single.nbytes, charged(reserve))
        singles.append(single)
    if cache_traits(singles[0].entries, requests.anatomy.architecture).unbatchable:
        kept = singles[2]
    else:
        batch = compose([BatchRow(single) for single in singles], CAPACITY).batch
        assert batch is not None
        require(batch.nbytes, 3 * charged(CAPACITY))
        requests.decode(batch, [5, 5, 5], 2)
        require(batch.nbytes, 3 * charged(CAPACITY))
        fewer = compose(
            [BatchRow(batch, 0), BatchRow(batch, 1)], CAPACITY, [BatchRow(batch, 2)], [batch.lengths[2]]
        )
        assert fewer.batch is not None
        require(fewer.batch.nbytes, 2 * charged(CAPACITY))
        kept = fewer.leaving[0]
    kept = kept.resized(kept.length)
    require(kept.nbytes, charged(kept.length))
    require(kept.resized(600).nbytes, charged(600))


def test_a_prompt_just_prefilled_is_kept_at_what_is_charged(tmp_path: Path) -> None:
    for name in ("gemma3_text", "llama4"):
        subject = Subject(name, tmp_path / name, "float32")
        mx.eval(subject.model.parameters())
        anatomy = examine(subject.model)
        caches = make_caches(subject.model, anatomy, range(anatomy.layer_count), 400)
        Requests(subject.model, anatomy).step([[5] * 290], caches)
        assert caches.nbytes > sum(piece.reserved_bytes(290) for piece in subject.pieces)
        kept = caches.resized(290)
        assert kept.nbytes <= sum(piece.reserved_bytes(290) for piece in subject.pieces)
