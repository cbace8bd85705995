"""Checks a model folder before anything is loaded from it. Reads headers only, and needs no mlx."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

from macmesh_daemon.engine.errors import LocalModelFilesError
from macmesh_daemon.models.errors import LocalModelFolderError
from macmesh_daemon.models.folder import read_folder
from macmesh_daemon.weights.errors import LocalWeightsError
from macmesh_daemon.weights.partial import is_partial, require_held

INDEX_NAME = "model.safetensors.index.json"
HEADER_LENGTH = struct.Struct("<Q")
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """What lies in a model folder."""

    config: dict[str, Any]
    """config.json."""
    tensor_bytes: dict[str, int]
    """Size of every tensor, by the name that the files give it."""


def check_model_files(folder: Path) -> ModelFiles:
    """Reads the config, the index and the header of every weight file, and compares them.

    Raises:
        LocalModelFilesError: the folder, its config or its weights are missing; a file is no safetensors file
            or shorter than its header says; the index and the files contradict each other.
    """
    if not folder.is_dir():
        raise LocalModelFilesError(f"there is no model folder {folder}; name a folder with a config.json")
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise LocalModelFilesError(f"{folder / 'config.json'} names no model_type")
    # The same pattern as mlx-lm, which loads every file that matches.
    shards = sorted(folder.glob("model*.safetensors"))
    index = folder / INDEX_NAME
    weight_map = _read_weight_map(index) if index.exists() else None
    missing = sorted(set(weight_map.values()) - {shard.name for shard in shards}) if weight_map else []
    if missing:
        raise LocalModelFilesError(
            f"{index} names files that are not there: {', '.join(missing[:5])}; "
            f"complete the download ({len(missing)} of {len(missing) + len(shards)} files are missing)"
        )
    if not shards:
        raise LocalModelFilesError(f"there are no weights (model*.safetensors) in {folder}")
    headers = {shard.name: read_header(shard) for shard in shards}
    if weight_map is not None:
        _compare(index, weight_map, headers)
    tensor_bytes = {name: size for header in headers.values() for name, size in header.items()}
    return ModelFiles(config, tensor_bytes)


def require_whole(folder: Path) -> None:
    """Lets a model be read as a whole, by code that does not ask which of its bytes are there.

    Raises:
        LocalModelFilesError: the folder holds a part of its model only.
    """
    if not is_partial(folder):
        return
    try:
        tensors = read_folder(folder).tensors
        require_held(folder, tensors, tensors)
    except (LocalWeightsError, LocalModelFolderError) as problem:
        raise LocalModelFilesError(str(problem)) from problem


def read_header(shard: Path) -> dict[str, int]:
    """Size in bytes of every tensor in one safetensors file.

    Raises:
        LocalModelFilesError: it is no safetensors file, or shorter or longer than its header says.
    """
    try:
        with shard.open("rb") as file:
            file_bytes = shard.stat().st_size
            start = file.read(HEADER_LENGTH.size)
            (length,) = HEADER_LENGTH.unpack(start) if len(start) == HEADER_LENGTH.size else (-1,)
            if not 0 <= length <= min(MAX_HEADER_BYTES, file_bytes - HEADER_LENGTH.size):
                raise LocalModelFilesError(
                    f"{shard} is no safetensors file or is cut short ({file_bytes} bytes); fetch it again"
                )
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            ends = {name: entry["data_offsets"] for name, entry in entries.items()}
            sizes = {name: int(end) - int(begin) for name, (begin, end) in ends.items()}
            data_bytes = max((int(end) for _, end in ends.values()), default=0)
    except OSError as error:
        raise LocalModelFilesError(f"{shard} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LocalModelFilesError(f"{shard} has a broken safetensors header: {error!r}") from error
    expected = HEADER_LENGTH.size + length + data_bytes
    if file_bytes != expected:
        raise LocalModelFilesError(
            f"{shard} has {file_bytes} bytes but its header describes {expected}; it is damaged or "
            "cut short; fetch it again"
        )
    return sizes


def _compare(index: Path, weight_map: dict[str, str], headers: dict[str, dict[str, int]]) -> None:
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise LocalModelFilesError(f"{index} says that {name} is in {file}, but it is not there")
    # A file that the index does not name at all is loaded by mlx-lm all the same, so it is no contradiction.
    for file in set(weight_map.values()):
        for name in headers[file]:
            if name not in weight_map:
                raise LocalModelFilesError(
                    f"{index} has no entry for {name}, which is in {file}; "
                    "index and weights do not belong together"
                )


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise LocalModelFilesError(f"{index} has no weight_map")
    return weight_map


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise LocalModelFilesError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LocalModelFilesError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise LocalModelFilesError(f"{path} holds no JSON object")
    return content


def vocabulary_tokens(folder: Path) -> int:
    """Number of token ids that the model knows, or 0 where its config does not tell."""
    config = _read_json(folder / "config.json")
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return 0
