"""Model folders in Hugging Face's layout: config, safetensors files, and their index."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macmesh_daemon.models.errors import LocalModelFolderError, LocalModelNotFoundError
from macmesh_daemon.models.safetensors import SafetensorsHeader, TensorInfo, read_header

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
#: What mlx-lm reads weights from.
WEIGHTS_PATTERN = "model*.safetensors"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

#: Names under which configs state the most positions, best first.
_POSITION_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
    "max_context_length",
    "model_max_length",
)

#: A larger factor, or infinity, is a typing mistake.
_MOST_STRETCH = 1000


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model folder whose files were found to agree.

    Attributes:
        model_id: What the user asked for.
        path: The folder, absolute.
        config: Its config.json.
        tensors: Every tensor by name; empty where the folder holds no weights.
        weight_files: Names of its safetensors files, sorted.
        digest: SHA-256, hex, over config.json, the index and the headers: equal content, equal digest, on any
            machine.
    """

    model_id: str
    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    weight_files: tuple[str, ...]
    digest: str

    @property
    def model_type(self) -> str:
        """``model_type`` of the config."""
        return str(self.config["model_type"])

    @property
    def position_limit(self) -> int | None:
        """Most tokens of context that the config allows; None where it names none."""
        return position_limit(self.config)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    def files_of(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Which of the tensors lie in which file.

        Raises:
            LocalModelFolderError: No file has one of them.
        """
        files: dict[str, list[str]] = {}
        for name in names:
            if name not in self.tensors:
                raise LocalModelFolderError(f"{self.path} has no tensor {name!r}")
            files.setdefault(self.tensors[name].file, []).append(name)
        return files


def position_limit(config: Mapping[str, Any]) -> int | None:
    """Most tokens of context that a config allows; None where it names none.

    A multimodal config keeps the text model's under ``text_config`` (or ``language_config``).

    Most configs with scaled rotary embeddings state the scaled limit (DeepSeek, Kimi, gpt-oss, Llama 3.1).
    The exception that is certain is YaRN switched on as Qwen documents it: ``original_max_position_embeddings``
    is stated, equals the limit, and the factor comes on top. No other scaling raises the limit.
    """
    nested = [config[name] for name in ("text_config", "language_config", "llm_config") if name in config]
    for source in [*nested, config]:
        if isinstance(source, Mapping):
            for name in _POSITION_FIELDS:
                value = source.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return _stretched(value, source)
    return None


def is_hub_id(model: str) -> bool:
    """Whether a name has the form of a model on a hub: ``organisation/model``."""
    return _HUB_ID.fullmatch(model) is not None


def _stretched(limit: int, source: Mapping[str, Any]) -> int:
    scaling = source.get("rope_scaling") or source.get("rope_parameters")
    if not isinstance(scaling, Mapping) or scaling.get("rope_type", scaling.get("type")) != "yarn":
        return limit
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < _MOST_STRETCH:
        return limit
    return int(original * factor) if isinstance(original, int) and original == limit else limit


def resolve(model_id: str, search_folders: Iterable[Path], *, require_weights: bool = True) -> ModelFolder:
    """Finds a model folder and reads its headers. Blocks on the disk; no tensor data is read.

    Args:
        model_id: An absolute path (``~`` is understood), or a name below one of the search folders.
        search_folders: Where models lie, best first.
        require_weights: Refuse a folder without weight files.

    Raises:
        LocalModelNotFoundError: There is no such folder.
        LocalModelFolderError: The folder is broken; the message names the file.
    """
    path = Path(model_id).expanduser()
    if path.is_absolute():
        if not path.is_dir():
            raise LocalModelNotFoundError(f"there is no model folder {path}")
        return read_folder(path, model_id=model_id, require_weights=require_weights)
    folders = [folder.expanduser() for folder in search_folders]
    if model_id and ".." not in path.parts:
        for folder in folders:
            if (folder / path / CONFIG_NAME).is_file():
                return read_folder(folder / path, model_id=model_id, require_weights=require_weights)
    looked = ", ".join(str(folder) for folder in folders) or "no folder: none is configured"
    raise LocalModelNotFoundError(
        f"there is no model {model_id!r}; looked below {looked}. "
        "Give an absolute path, or the name of a model folder there"
    )


def read_folder(path: Path, *, model_id: str = "", require_weights: bool = True) -> ModelFolder:
    """Reads the config, the index and the headers of a model folder, and checks them against each other.

    Raises:
        LocalModelFolderError: Something is missing or contradicts; the message names the file.
    """
    path = path.resolve()
    config_bytes = _read(path / CONFIG_NAME)
    config = _object(config_bytes, path / CONFIG_NAME)
    if not isinstance(config.get("model_type"), str):
        raise LocalModelFolderError(f"{path / CONFIG_NAME} names no model_type: it is no model's config")
    index_bytes = _read(path / INDEX_NAME) if (path / INDEX_NAME).exists() else b""
    names = {entry.name for entry in path.glob(WEIGHTS_PATTERN)}
    weight_map = _weight_map(index_bytes, path)
    if missing := sorted(set(weight_map.values()) - names):
        raise LocalModelFolderError(f"{path / missing[0]} is missing: {path / INDEX_NAME} names it")
    if not names and require_weights:
        raise LocalModelFolderError(f"{path} holds no weights: no file matches {WEIGHTS_PATTERN}")
    headers = {name: read_header(path / name) for name in sorted(names)}
    tensors = _merge(headers, path)
    if weight_map:
        _check_index(weight_map, tensors, path)
    return ModelFolder(
        model_id=model_id or str(path),
        path=path,
        config=config,
        tensors=tensors,
        weight_files=tuple(sorted(names)),
        digest=_digest(config_bytes, index_bytes, headers),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LocalModelFolderError(f"{path} is missing: this is no model folder") from None
    except OSError as problem:
        raise LocalModelFolderError(f"{path} cannot be read: {problem.strerror or problem}") from problem


def _object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise LocalModelFolderError(f"{path} is not JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise LocalModelFolderError(f"{path} is not a JSON object")
    return value


def _weight_map(index_bytes: bytes, path: Path) -> dict[str, str]:
    if not index_bytes:
        return {}
    weight_map = _object(index_bytes, path / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise LocalModelFolderError(f"{path / INDEX_NAME} has no weight_map from tensors to files")
    return weight_map


def _merge(headers: Mapping[str, SafetensorsHeader], path: Path) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for header in headers.values():
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise LocalModelFolderError(
                    f"{path}: {tensor.file} and {tensors[name].file} both hold {name!r}: remove the stale one"
                )
            tensors[name] = tensor
    return tensors


def _check_index(weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo], path: Path) -> None:
    for name, file in weight_map.items():
        found = tensors.get(name)
        if found is None or found.file != file:
            raise LocalModelFolderError(
                f"{path / file} lacks {name!r}, which {path / INDEX_NAME} places there"
            )
    for name, tensor in tensors.items():
        if name not in weight_map:
            raise LocalModelFolderError(
                f"{path / INDEX_NAME} lacks an entry for {name!r} of {path / tensor.file}"
            )


def _digest(config: bytes, index: bytes, headers: Mapping[str, SafetensorsHeader]) -> str:
    digest = hashlib.sha256()
    parts = [(CONFIG_NAME, config), (INDEX_NAME, index)]
    parts += [(name, header.raw) for name, header in sorted(headers.items())]
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
