"""The comparison with unmodified mlx-lm, in real processes."""

import itertools
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.supervisor.errors import LocalVerifyError
from macmesh_daemon.supervisor.local_plan import count_layers, even_cuts, local_plan
from macmesh_daemon.supervisor.verify import first_difference, verify
from tinymodels import corrupt_layer, write_tiny_model

PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(37)]


@pytest.mark.process
async def test_three_stages_of_minimax_give_the_tokens_of_one_process(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "minimax", shards=3)
    report = await verify(folder, PROMPT, 16, stages=3, prefill_chunk_tokens=8, deadline_seconds=120)
    assert report.identical
    assert report.first_difference is None
    assert report.stage_layers == ((0, 2), (2, 3), (3, 4))
    told = report.to_json()
    assert told["identical"] is True
    assert told["tokens"] == 16
    assert told["pipeline"]["token_ids"] == told["reference"]["token_ids"]
    assert told["pipeline"]["decode_tokens_per_second"] > 0
    assert len(set(report.pipeline.token_ids)) > 3


@pytest.mark.process
async def test_one_corrupt_layer_in_one_stage_is_found(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "good", "qwen3")
    corrupt = tmp_path / "corrupt"
    shutil.copytree(folder, corrupt)
    corrupt_layer(corrupt, 2)
    report = await verify(
        folder, PROMPT, 16, cuts=[2], stage_model_paths=[folder, corrupt], deadline_seconds=120
    )
    assert not report.identical
    assert report.first_difference is not None
    assert report.to_json()["identical"] is False


@pytest.mark.process
async def test_a_pipeline_that_cannot_run_is_told(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3")
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(LocalVerifyError, match=r"stage 0 ended.*not there"):
        await verify(folder, PROMPT, 4, stages=1, deadline_seconds=120)


async def test_cuts_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(LocalVerifyError, match="no model folder"):
        await verify(tmp_path, PROMPT, 4)
    (tmp_path / "config.json").write_text('{"text_config": {"num_hidden_layers": 3}}')
    assert count_layers(tmp_path) == 3
    with pytest.raises(LocalVerifyError, match="into 4 stages"):
        await verify(tmp_path, PROMPT, 4, stages=4)
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    with pytest.raises(LocalVerifyError, match="how many layers"):
        count_layers(tmp_path)
    with pytest.raises(LocalVerifyError, match="do not make"):
        local_plan([tmp_path] * 2, [3], layer_count=3, context_tokens=10)


@given(st.integers(1, 200), st.integers(1, 20))
def test_even_cuts_are_even(layers: int, stages: int) -> None:
    if stages > layers:
        with pytest.raises(LocalVerifyError):
            even_cuts(layers, stages)
        return
    bounds = [0, *even_cuts(layers, stages), layers]
    sizes = [end - begin for begin, end in itertools.pairwise(bounds)]
    assert len(sizes) == stages
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_first_difference() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 3]) == 1
    assert first_difference([1, 2], [1]) == 1
    assert first_difference([], [1]) == 0
