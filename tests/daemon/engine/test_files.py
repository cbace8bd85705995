import json
import struct
from pathlib import Path

import pytest

from macmesh_daemon.engine.errors import LocalModelFilesError
from macmesh_daemon.engine.files import INDEX_NAME, check_model_files, read_header


def shard(path: Path, tensors: dict[str, int], *, cut_bytes: int = 0) -> None:
    header, end = {"__metadata__": {"format": "mlx"}}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}  # type: ignore[dict-item]
        end += size
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(end)
    path.write_bytes(content[: len(content) - cut_bytes])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    shard(tmp_path / "model-00001-of-00002.safetensors", {"a": 10, "b": 20})
    shard(tmp_path / "model-00002-of-00002.safetensors", {"c": 30})
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": one, "b": one, "c": two}}))
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(LocalModelFilesError) as caught:
        check_model_files(folder)
    return str(caught.value)


def test_whole_folder(folder: Path) -> None:
    files = check_model_files(folder)
    assert files.tensor_bytes == {"a": 10, "b": 20, "c": 30}
    assert files.config == {"model_type": "qwen3"}


def test_single_file_needs_no_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    shard(tmp_path / "model.safetensors", {"a": 3})
    assert check_model_files(tmp_path).tensor_bytes == {"a": 3}


@pytest.mark.parametrize("cut_bytes", [1, 25, 100])
def test_truncated_file(folder: Path, cut_bytes: int) -> None:
    shard(folder / "model-00002-of-00002.safetensors", {"c": 30}, cut_bytes=cut_bytes)
    text = refusal(folder)
    assert "model-00002-of-00002.safetensors" in text
    assert "cut short" in text


def test_file_that_is_no_safetensors(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\x00" * 7)
    assert "no safetensors file" in refusal(folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(struct.pack("<Q", 5) + b"{nope")
    assert "broken safetensors header" in refusal(folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(struct.pack("<Q", 12) + b'{"a": "str"}')
    assert "broken safetensors header" in refusal(folder)


def test_file_with_bytes_too_many(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    assert "damaged" in refusal(folder)


def test_index_names_a_missing_file(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    text = refusal(folder)
    assert "model-00002-of-00002.safetensors" in text
    assert "1 of 2" in text


def test_index_names_a_tensor_that_is_not_there(folder: Path) -> None:
    shard(folder / "model-00002-of-00002.safetensors", {"d": 30})
    assert "says that c is in" in refusal(folder)


def test_index_lacks_an_entry(folder: Path) -> None:
    shard(folder / "model-00002-of-00002.safetensors", {"c": 30, "d": 4})
    assert "no entry for d" in refusal(folder)


def test_no_folder_config_or_weights(tmp_path: Path) -> None:
    assert "no model folder" in refusal(tmp_path / "x")
    assert "config.json cannot be read" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "no JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "no JSON object" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "no model_type" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert "no weights" in refusal(tmp_path)
    shard(tmp_path / "model.safetensors", {"a": 3})
    (tmp_path / INDEX_NAME).write_text("{}")
    assert "no weight_map" in refusal(tmp_path)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(LocalModelFilesError, match="cannot be read"):
        read_header(tmp_path / "model.safetensors")
