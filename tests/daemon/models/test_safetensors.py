import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.models.files import FIRST, header_of, write_raw, write_tensors
from macmesh_daemon.models.errors import LocalModelFolderError
from macmesh_daemon.models.safetensors import read_header


def test_the_header_tells_shapes_and_places(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "model.safetensors", FIRST)
    header = read_header(path)
    start = 8 + len(header.raw)
    assert set(header.tensors) == {"a", "b"}
    a, b = header.tensors["a"], header.tensors["b"]
    assert (a.dtype, a.shape, a.begin, a.end) == ("F32", (2, 3), start, start + 24)
    assert (b.begin, b.size_bytes) == (start + 24, 8)


def test_files_that_mlx_writes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {
        "x": mx.zeros((3, 5), mx.bfloat16),
        "y": mx.zeros((), mx.float32),
        "z": mx.zeros((0, 4), mx.uint32),
    }
    mx.save_safetensors(str(path), arrays, {"format": "mlx"})
    tensors = read_header(path).tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"x": (3, 5), "y": (), "z": (0, 4)}
    assert {name: tensor.size_bytes for name, tensor in tensors.items()} == {"x": 30, "y": 4, "z": 0}


def _entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("header", "data_bytes", "named"),
    [
        (b"not json", 0, "not JSON"),
        ([1], 0, "not a JSON object"),
        (_entry(), 7, "truncated"),
        (_entry(), 9, "too long"),
        (_entry(dtype="F33"), 8, "F33"),
        (_entry(shape=[3]), 8, "cannot have 8 bytes"),
        (_entry(shape=[-2]), 8, "is not one"),
        (_entry(shape=[True]), 8, "is not one"),
        (_entry(data_offsets=[8]), 8, "is not one"),
        (_entry(data_offsets=[8, 0]), 8, "cannot have -8 bytes"),
        (_entry(data_offsets=[4, 12]), 12, "gap"),
        ({"a": 5}, 0, "is not one"),
        ({**_entry(), "b": _entry()["a"]}, 8, "overlaps"),
    ],
)
def test_broken_files_are_refused_by_name(
    tmp_path: Path, header: object, data_bytes: int, named: str
) -> None:
    path = write_raw(tmp_path / "model-7.safetensors", header, data_bytes)
    with pytest.raises(LocalModelFolderError, match=named) as caught:
        read_header(path)
    assert "model-7.safetensors" in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_no_cut_of_a_file_passes(tmp_path: Path, data: st.DataObject) -> None:
    whole = write_tensors(tmp_path / "whole.safetensors", FIRST).read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(LocalModelFolderError):
        read_header(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_damaged_headers_raise_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    header, size = header_of(FIRST)
    raw = bytearray(json.dumps(header).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = write_raw(tmp_path / "model.safetensors", bytes(raw), size)
    try:
        read_header(path)
    except LocalModelFolderError as problem:
        assert "model.safetensors" in str(problem)  # noqa: PT017  either outcome is right


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalModelFolderError, match=r"nowhere\.safetensors"):
        read_header(tmp_path / "nowhere.safetensors")
