"""A pipeline of stages against unmodified mlx-lm."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from macmesh_daemon.engine.caches import StageCaches
from macmesh_daemon.engine.errors import (
    LocalModelFilesError,
    LocalModelLoadError,
    LocalStageError,
)
from macmesh_daemon.engine.sampling import choose
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.engine.stage import StageModel, load_stage
from tinymodels import CONFIGS, VOCABULARY, write_tiny_model

PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(37)]
CHUNK = 16
NEW_TOKENS = 12
LAYERS = 4
TALKATIVE = [name for name in CONFIGS if name != "rwkv7"]
"""The other one repeats one token with these weights."""


def stages_of(folder: Path, cuts: list[int]) -> list[StageModel]:
    bounds = [0, *cuts, LAYERS]
    return [load_stage(folder, lo, hi, LAYERS) for lo, hi in itertools.pairwise(bounds)]


def run_step(stages: list[StageModel], caches: list[StageCaches], tokens: list[int]) -> mx.array:
    payload = [mx.array([tokens])]
    for stage, cache in zip(stages, caches, strict=True):
        payload = stage.step(payload, cache)
        stage.evaluate(payload, cache)
    return payload[0]


def generate(stages: list[StageModel], prompt: list[int], count: int) -> tuple[list[int], list[mx.array]]:
    caches = [stage.make_caches(len(prompt) + count) for stage in stages]
    body = prompt[:-1]
    for begin in range(0, len(body), CHUNK):
        run_step(stages, caches, body[begin : begin + CHUNK])
    tokens: list[int] = []
    logits = []
    last = prompt[-1]
    for index in range(count):
        logits.append(run_step(stages, caches, [last])[:, -1, :])
        token, _ = choose(logits[-1], Sampling(), index)
        last = cast("int", token.item())
        tokens.append(last)
    return tokens, logits


def reference(folder: Path, prompt: list[int], count: int) -> tuple[list[int], list[mx.array]]:
    model, _ = load_model(folder)
    steps = generate_step(mx.array(prompt), model, max_tokens=count, prefill_step_size=CHUNK)
    pairs = list(steps)
    return [int(token) for token, _ in pairs], [logprobs for _, logprobs in pairs]


@pytest.mark.parametrize("cuts", [[], [1, 3]], ids=["one", "three"])
@pytest.mark.parametrize("name", TALKATIVE)
def test_tokens_and_logprobs_equal_single_process_mlx_lm_to_the_bit(
    tmp_path: Path, name: str, cuts: list[int]
) -> None:
    folder = write_tiny_model(tmp_path, name)
    tokens, logits = generate(stages_of(folder, cuts), PROMPT, NEW_TOKENS)
    expected, expected_logprobs = reference(folder, PROMPT, NEW_TOKENS)
    assert len(set(expected)) > 3, "a model that repeats one token shows nothing"
    assert tokens == expected
    for ours, theirs in zip(logits, expected_logprobs, strict=True):
        logprobs = (ours - mx.logsumexp(ours, keepdims=True)).squeeze(0)
        assert mx.array_equal(logprobs, theirs).item()


@pytest.mark.parametrize("name", ["qwen3", "minimax", "llama_tied"])
def test_quantised_models_split_as_well(tmp_path: Path, name: str) -> None:
    folder = write_tiny_model(tmp_path, name, quantize_bits=4)
    tokens, _ = generate(stages_of(folder, [1]), PROMPT, NEW_TOKENS)
    assert tokens == reference(folder, PROMPT, NEW_TOKENS)[0]


def test_prompt_of_one_token(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3")
    tokens, _ = generate(stages_of(folder, [2]), PROMPT[:1], 5)
    assert tokens == reference(folder, PROMPT[:1], 5)[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_stages_own_every_weight_once_except_a_tied_embedding(tmp_path: Path, name: str) -> None:
    folder = write_tiny_model(tmp_path, name)
    whole = stages_of(folder, [])[0].owned_bytes
    model, _ = load_model(folder, lazy=True)
    parts = sum(stage.owned_bytes for stage in stages_of(folder, [1, 3]))
    tied = VOCABULARY * 64 * 2 if CONFIGS[name]["tie_word_embeddings"] else 0
    assert parts == whole + tied
    assert whole == sum(
        shard_bytes for shard_bytes in map(_nbytes, _leaves(model.parameters())) if shard_bytes
    )


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in _leaves(value)]
    return [tree]


def _nbytes(leaf: Any) -> int:
    return leaf.nbytes if isinstance(leaf, mx.array) else 0


def test_progress_counts_up_to_the_owned_bytes(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3")
    told: list[tuple[int, int]] = []
    stage = load_stage(folder, 0, 2, LAYERS, lambda loaded, total: told.append((loaded, total)))
    assert told[0][0] == 0
    assert told[-1] == (stage.owned_bytes, stage.owned_bytes)
    assert [loaded for loaded, _ in told] == sorted(loaded for loaded, _ in told)
    assert len(told) == 1 + 2 + 1


def test_only_owned_weights_are_read_from_the_files(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3", hidden_size=512, intermediate_size=2048, vocab_size=4000)
    script = """
import sys
from pathlib import Path
from macmesh_daemon.engine.lean_imports import import_without_tokenizers
import_without_tokenizers()
import mlx.core as mx
from macmesh_daemon.engine.stage import load_stage
def read_bytes():
    return int(open("/proc/self/io").read().split()[1])
def run(stage):
    caches = stage.make_caches(300)
    for inputs in (mx.zeros((1, 20, 512), mx.bfloat16), mx.zeros((1, 1, 512), mx.bfloat16)):
        stage.evaluate(stage.step([inputs], caches), caches)
    return caches.nbytes
before = read_bytes()
stage = load_stage(Path(sys.argv[1]), 1, 2, 4)
cache_bytes = run(stage)
print(stage.owned_bytes, read_bytes() - before, mx.get_active_memory(), cache_bytes)
"""
    if not Path("/proc/self/io").exists():
        pytest.skip("the system does not count what a process reads")
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
        timeout=120,
    )
    owned, read, active, cache_bytes = map(int, done.stdout.split())
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert owned < total / 4
    assert read < owned + 200_000, "weights of other stages were read"
    assert cache_bytes == 2 * 2 * 16 * 512 * 2
    assert owned <= active < owned + 200_000


def test_caches_are_allocated_once_and_foreign_layers_hold_nothing(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3")
    stage = load_stage(folder, 1, 2, LAYERS)
    caches = stage.make_caches(600)
    sizes, active = [], []
    for tokens in [16] * 20 + [1] * 280:
        hidden = mx.zeros((1, tokens, 64), mx.bfloat16)
        stage.evaluate(stage.step([hidden], caches), caches)
        del hidden
        sizes.append(caches.nbytes)
        mx.clear_cache()
        active.append(mx.get_active_memory())
    # keys and values, 2 heads of 16, 768 = 600 rounded up to the allocation step, 2 bytes each
    assert set(sizes) == {2 * 2 * 16 * 768 * 2}
    assert max(active) - min(active) < 64 * 1024
    assert caches.length == 600
    with pytest.raises(LocalStageError, match="600 reserved"):
        stage.step([mx.zeros((1, 1, 64), mx.bfloat16)], caches)


def test_long_generation_across_the_allocation_step(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "llama_sliding")
    prompt = [(7 * i * i + 3) % 300 + 4 for i in range(250)]
    tokens, _ = generate(stages_of(folder, [1]), prompt, 20)
    assert tokens == reference(folder, prompt, 20)[0]


def test_unknown_architecture_is_told_by_name(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3")
    (folder / "config.json").write_text('{"model_type": "perceptron_9000"}')
    with pytest.raises(LocalModelLoadError, match="perceptron_9000"):
        load_stage(folder, 0, 2, LAYERS)


def test_weights_that_the_model_needs_but_nobody_has(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3", shards=1)
    weights = cast("dict[str, mx.array]", mx.load(str(folder / "model.safetensors")))
    del weights["model.layers.2.mlp.up_proj.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(LocalModelLoadError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        load_stage(folder, 0, 2, LAYERS)


def test_plan_for_another_number_of_layers(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3")
    with pytest.raises(LocalModelLoadError, match="different models"):
        load_stage(folder, 0, 2, 62)
    with pytest.raises(LocalStageError, match="no range"):
        load_stage(folder, 3, 9, LAYERS)
    with pytest.raises(LocalModelFilesError, match="no model folder"):
        load_stage(tmp_path / "nowhere", 0, 2, LAYERS)


def test_reference_caches_of_these_models_are_what_the_test_says(tmp_path: Path) -> None:
    model, _ = load_model(write_tiny_model(tmp_path, "llama_sliding"), lazy=True)
    kinds = [type(cache).__name__ for cache in make_prompt_cache(model)]
    assert kinds == ["RotatingKVCache", "KVCache"] * 2
