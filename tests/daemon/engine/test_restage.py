"""A stage that takes over what another one held: the same tokens, only the missing bytes read, no more memory."""

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from macmesh_daemon.engine.held import HeldWeights
from macmesh_daemon.engine.profile import map_tensors
from macmesh_daemon.engine.stage import StageModel, load_stage
from macmesh_daemon.models.folder import read_folder
from macmesh_daemon.weights.partial import ABOUT_NAME, About, PartialModel, read_at
from tinymodels import write_tiny_model
from zoo import config, write_model

LAYERS = 4
MOVES = {
    "nothing": ((1, 3), (1, 3)),
    "grow at the front": ((2, 3), (1, 3)),
    "grow at the back": ((1, 2), (1, 3)),
    "shrink": ((0, 4), (1, 3)),
    "shift": ((0, 2), (1, 3)),
    "become the head": ((1, 3), (0, 3)),
    "become the tail": ((1, 3), (1, 4)),
    "head becomes tail": ((0, 2), (2, 4)),
    "become all": ((1, 2), (0, 4)),
    "nothing in common": ((0, 2), (3, 4)),
}
ARCHITECTURES: dict[str, Callable[[Path], Path]] = {
    "qwen3": lambda folder: write_tiny_model(folder, "qwen3"),
    "tied": lambda folder: write_tiny_model(folder, "llama_tied"),
    "experts": lambda folder: write_tiny_model(folder, "qwen3_moe"),
    "quantised": lambda folder: write_tiny_model(folder, "qwen2", quantize_bits=4),
    "sliding": lambda folder: write_tiny_model(folder, "llama_sliding"),
}


CASES = [(name, move) for name in ("qwen3", "tied") for move in MOVES] + [
    (name, move) for name in ("experts", "quantised", "sliding") for move in ("shift", "become all")
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp("model")) for name, write in ARCHITECTURES.items()}


def outputs(stage: StageModel, width: int) -> list[mx.array]:
    """What a prompt and a few tokens bring out of a stage, fed with noise of its own."""
    caches = stage.make_caches(40)
    made = []
    for index, tokens in enumerate((9, 1, 1)):
        key = mx.random.key(index)
        if stage.is_head:
            inputs = mx.random.randint(4, 300, (1, tokens), key=key)
        else:
            facts = stage.payload_facts(1, tokens)
            assert facts is not None
            inputs = mx.random.normal((1, tokens, width), getattr(mx, facts[0].dtype), key=key)
        results = stage.step([inputs], caches)
        stage.evaluate(results, caches)
        made += results
    return made


def restaged(
    folder: Path, before: tuple[int, int], after: tuple[int, int], layers: int = LAYERS
) -> StageModel:
    held = HeldWeights()
    load_stage(folder, *before, layers, held=held).let_go()
    return load_stage(folder, *after, layers, held=held)


@pytest.mark.parametrize(("name", "move"), CASES)
def test_what_comes_out_is_that_of_a_fresh_load_to_the_bit(
    folders: dict[str, Path], name: str, move: str
) -> None:
    folder = folders[name]
    before, after = MOVES[move]
    again, fresh = restaged(folder, before, after), load_stage(folder, *after, LAYERS)
    for ours, theirs in zip(outputs(again, 64), outputs(fresh, 64), strict=True):
        assert mx.array_equal(ours, theirs).item()
    assert again.owned_bytes == fresh.owned_bytes
    assert fresh.kept_bytes == 0
    common = range(max(before[0], after[0]), min(before[1], after[1]))
    # A tied embedding is the head's and the tail's.
    tied = is_tied(folder) and before[0] == 0 and again.is_tail
    assert (again.kept_bytes > 0) == (bool(common) or tied)
    assert (again.kept_bytes == again.owned_bytes) == (move in {"nothing", "shrink"})


def is_tied(folder: Path) -> bool:
    return '"tie_word_embeddings": true' in (folder / "config.json").read_text()


@pytest.mark.parametrize("name", ["gemma3n", "qwen3_next", "deepseek_v3"])
def test_architectures_of_every_kind_take_over(tmp_path: Path, name: str) -> None:
    """Shared keys, recurrent layers, latent attention: whatever the adapters build is built anew."""
    folder = write_model(tmp_path, name)
    layers = config(name).get("text_config", config(name))["num_hidden_layers"]
    whole = load_stage(folder, 0, layers, layers)
    held = HeldWeights()
    load_stage(folder, 0, layers, layers, held=held).let_go()
    again = load_stage(folder, 0, layers, layers, held=held)
    assert again.kept_bytes == again.owned_bytes == whole.owned_bytes
    for ours, theirs in zip(outputs(again, 0), outputs(whole, 0), strict=True):
        assert mx.array_equal(ours, theirs).item()


def test_progress_begins_with_what_is_there(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3")
    held = HeldWeights()
    first = load_stage(folder, 0, 2, LAYERS, held=held)
    first.let_go()
    told: list[tuple[int, int]] = []
    stage = load_stage(folder, 1, 3, LAYERS, lambda *counts: told.append(counts), held)
    assert told[0] == (stage.kept_bytes, stage.owned_bytes)
    assert 0 < stage.kept_bytes == stage.owned_bytes // 2
    assert told[-1] == (stage.owned_bytes, stage.owned_bytes)
    assert len(told) == 2, "one layer was read"


def test_a_load_that_is_broken_off_keeps_what_it_has_read(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen3")
    held = HeldWeights()

    class BrokenOffError(Exception):
        pass

    def progress(loaded: int, total: int) -> None:
        if loaded > total / 2:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        load_stage(folder, 0, LAYERS, LAYERS, progress, held)
    whole = load_stage(folder, 0, LAYERS, LAYERS, held=held)
    assert whole.owned_bytes / 2 < whole.kept_bytes < whole.owned_bytes


@pytest.mark.parametrize("how", ["another model", "files exchanged in place"])
def test_nothing_of_other_files_is_taken_over(tmp_path: Path, how: str) -> None:
    folder = write_tiny_model(tmp_path / "one", "qwen3", shards=1)
    other = write_tiny_model(tmp_path / "two", "qwen3", shards=1, seed=7)
    held = HeldWeights()
    load_stage(folder, 0, LAYERS, LAYERS, held=held).let_go()
    if how == "files exchanged in place":
        (other / "model.safetensors").replace(folder / "model.safetensors")
        other = folder
    again = load_stage(other, 0, LAYERS, LAYERS, held=held)
    assert again.kept_bytes == 0
    for ours, theirs in zip(
        outputs(again, 64), outputs(load_stage(other, 0, LAYERS, LAYERS), 64), strict=True
    ):
        assert mx.array_equal(ours, theirs).item()


def test_a_part_of_a_model_that_grows_is_the_same_until_something_of_it_proves_wrong(tmp_path: Path) -> None:
    folder = read_folder(write_tiny_model(tmp_path, "qwen3", shards=1))
    tensors = map_tensors(folder)
    (folder.path / ABOUT_NAME).write_text(About(folder.digest).to_json_text())
    partial = PartialModel(folder.path)

    def come(first: int, end: int) -> None:
        pieces = partial.missing(folder.tensors, tensors.needed(first, end))
        for piece in pieces:
            partial.write(piece, read_at(folder.path / piece.file, piece.begin, piece.size_bytes))
        partial.commit(dict.fromkeys(pieces, "00"))

    held = HeldWeights()
    come(0, 2)
    before = load_stage(folder.path, 0, 2, LAYERS, held=held)
    before.let_go()
    come(2, LAYERS)
    again = load_stage(folder.path, 0, LAYERS, LAYERS, held=held)
    assert again.kept_bytes == before.owned_bytes
    again.let_go()
    partial.forget("model.safetensors")
    come(0, LAYERS)
    assert load_stage(folder.path, 0, LAYERS, LAYERS, held=held).kept_bytes == 0


@pytest.mark.parametrize(("before", "after"), [((0, 3), (2, 4)), ((0, 2), (2, 4)), ((1, 2), (0, 4))])
def test_what_is_no_longer_owned_is_gone_before_anything_is_read(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    folder = write_tiny_model(tmp_path, "qwen3", hidden_size=256, intermediate_size=1024)
    held = HeldWeights()
    load_stage(folder, *before, LAYERS, held=held).let_go()
    gc.collect()
    mx.clear_cache()
    held_bytes = held.held_bytes
    base = mx.get_active_memory() - held_bytes
    mx.reset_peak_memory()
    stage = load_stage(folder, *after, LAYERS, held=held)
    assert mx.get_peak_memory() - base < max(held_bytes, stage.owned_bytes) + 100_000
    assert held.held_bytes == stage.owned_bytes


@pytest.mark.process
def test_only_what_is_missing_is_read_from_the_files(tmp_path: Path) -> None:
    if not Path("/proc/self/io").exists():
        pytest.skip("the system does not count what a process reads")
    folder = write_tiny_model(tmp_path, "qwen3", hidden_size=512, intermediate_size=2048, vocab_size=4000)
    script = """
import sys
from collections.abc import Callable
from pathlib import Path
from macmesh_daemon.engine.lean_imports import import_without_tokenizers
import_without_tokenizers()
from macmesh_daemon.engine.held import HeldWeights
from macmesh_daemon.engine.stage import load_stage
def read_bytes():
    return int(open("/proc/self/io").read().split()[1])
held = HeldWeights()
load_stage(Path(sys.argv[1]), 0, 2, 4, held=held).let_go()
for bounds in ((0, 2), (0, 3), (1, 3), (3, 4)):
    before = read_bytes()
    stage = load_stage(Path(sys.argv[1]), *bounds, 4, held=held)
    print(stage.owned_bytes - stage.kept_bytes, read_bytes() - before)
    stage.let_go()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True, timeout=50
    )
    counts = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [expected == 0 for expected, _ in counts] == [True, False, True, False]
    for expected, read in counts:
        assert expected <= read < expected + 100_000, "headers and the config are small"
