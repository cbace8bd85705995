import json
from pathlib import Path
from typing import Any

import pytest

from daemon.models.files import CONFIG, FIRST, write_folder, write_index, write_tensors
from macmesh_daemon.models.errors import LocalModelFolderError, LocalModelNotFoundError
from macmesh_daemon.models.folder import position_limit, read_folder, resolve

SHARD_1 = "model-00001-of-00002.safetensors"
SHARD_2 = "model-00002-of-00002.safetensors"


def test_a_model_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "models" / "org" / "tiny")
    by_path = resolve(str(folder), [])
    by_name = resolve("org/tiny", [tmp_path / "none", tmp_path / "models"])
    assert by_path.path == by_name.path == folder.resolve()
    assert by_name.model_id == "org/tiny"
    assert by_path.digest == by_name.digest
    assert by_name.model_type == "llama"
    assert by_name.position_limit == 4096
    assert by_name.total_bytes == 24 + 8 + 5
    assert by_name.weight_files == (SHARD_1, SHARD_2)
    assert by_name.files_of(["a", "c", "b"]) == {SHARD_1: ["a", "b"], SHARD_2: ["c"]}


@pytest.mark.parametrize("model_id", ["", "absent", "../secret", "a/../../secret", "/nowhere/at/all"])
def test_what_is_not_there_is_not_found(tmp_path: Path, model_id: str) -> None:
    write_folder(tmp_path / "secret")
    (tmp_path / "models").mkdir()
    with pytest.raises(LocalModelNotFoundError):
        resolve(model_id, [tmp_path / "models"])


def test_the_digest_follows_content_not_place(tmp_path: Path) -> None:
    first, second = write_folder(tmp_path / "x"), write_folder(tmp_path / "y")
    same = read_folder(first).digest
    assert read_folder(second).digest == same
    (second / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 1}))
    assert read_folder(second).digest != same


def _remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _write(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_remove("config.json"), "config.json is missing"),
        (_write("config.json", "{"), "config.json is not JSON"),
        (_write("config.json", "[]"), "config.json is not a JSON object"),
        (_write("config.json", "{}"), "names no model_type"),
        (_remove(SHARD_2), f"{SHARD_2} is missing"),
        (_write(SHARD_1, "short"), SHARD_1),
        (_write("model.safetensors.index.json", "oops"), "index.json is not JSON"),
        (_write("model.safetensors.index.json", '{"weight_map": 3}'), "no weight_map"),
        (lambda folder: write_index(folder, {"a": SHARD_1, "c": SHARD_2}), "lacks an entry for 'b'"),
        (
            lambda folder: write_index(folder, {"a": SHARD_1, "b": SHARD_1, "c": SHARD_2, "d": SHARD_2}),
            "lacks 'd'",
        ),
        (lambda folder: write_index(folder, {"a": SHARD_2, "b": SHARD_1, "c": SHARD_2}), "lacks 'a'"),
        (
            lambda folder: write_tensors(folder / "model-extra.safetensors", {"a": FIRST["a"]}),
            "both hold 'a'",
        ),
    ],
)
def test_broken_folders_are_refused_with_the_file(tmp_path: Path, damage: Any, named: str) -> None:
    folder = write_folder(tmp_path / "m")
    damage(folder)
    with pytest.raises(LocalModelFolderError, match=named):
        read_folder(folder)


def test_a_folder_without_weights_serves_for_planning_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(LocalModelFolderError, match="no weights"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, require_weights=False).tensors == {}


def test_shards_without_an_index_are_read_as_they_are(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").unlink()
    assert set(read_folder(folder).tensors) == {"a", "b", "c"}


def _yarn(factor: object, original: int) -> dict[str, object]:
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 8}, 8),
        ({"n_positions": 16}, 16),
        ({"text_config": {"max_position_embeddings": 32}, "max_position_embeddings": 64}, 32),
        ({"text_config": {}, "max_position_embeddings": 64}, 64),
        ({"max_position_embeddings": None, "max_seq_len": 5}, 5),
        ({"max_position_embeddings": True}, None),
        ({}, None),
        # YaRN on top of the stated limit, as Qwen documents it.
        ({"max_position_embeddings": 100, "rope_scaling": _yarn(4.0, 100)}, 400),
        ({"text_config": {"max_position_embeddings": 100, "rope_parameters": _yarn(2.5, 100)}}, 250),
        # DeepSeek and Kimi state the scaled limit.
        ({"max_position_embeddings": 400, "rope_scaling": _yarn(4.0, 100)}, 400),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": _yarn(float("inf"), 100)}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": _yarn(float("nan"), 100)}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": _yarn("4", 100)}, 100),
    ],
)
def test_the_position_limit_comes_from_the_config(config: dict[str, Any], limit: int | None) -> None:
    assert position_limit(config) == limit
