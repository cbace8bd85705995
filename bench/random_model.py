"""Writes a model of random weights in the shape of a real one, as fast as the disk takes it, for the scripts here.

The names, shapes and types of the tensors are those of mlx-lm's own module, which a process of its own describes
without computing anything. Quantised weights are drawn as packed integers, so 18 GB take as long as writing 18 GB.
Scales are such that a layer keeps the size of what goes through it. The tokenizer is that of the demo model, with a
word for every further token, so that every token has a text.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from macmesh_daemon.models.demo import demo_model_folder

#: What tells the models apart; the rest is `_COMMON`. As Qwen2.5 of that size, but for "least" and "tiny".
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "least": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 1024,
    },
    "tiny": {
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
    "7b": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
    },
    "32b": {
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "intermediate_size": 27_648,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152_064,
    },
}
_COMMON: Final = {
    "model_type": "qwen2",
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
_GROUP: Final = 64
_SHARD_BYTES: Final = 1 << 30
_BLOCK_ITEMS: Final = 1 << 24
_DESCRIBE: Final = """
import json, sys
import mlx.core as mx, mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
mx.set_default_device(mx.cpu)
config, bits, group = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
model.apply(lambda x: x.astype(mx.bfloat16))
if bits:
    nn.quantize(model, group, bits)
print(json.dumps([[name, a.shape, str(a.dtype)] for name, a in tree_flatten(model.parameters())]))
"""
_TYPES: Final = {"mlx.core.uint32": ("U32", 4), "mlx.core.bfloat16": ("BF16", 2)}

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: str
    item_bytes: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.item_bytes


def default_folder(shape: str, bits: int) -> Path:
    """Where the scripts here keep such a model between runs."""
    return Path(tempfile.gettempdir()) / f"macmesh-random-{shape}-{bits}"


def config_of(shape: str, bits: int) -> dict[str, Any]:
    """The config.json of a shape; 0 bits: not quantised."""
    config: dict[str, Any] = {**_COMMON, **SHAPES[shape]}
    if bits:
        config["quantization"] = {"group_size": _GROUP, "bits": bits}
    return config


def write_model(folder: Path, shape: str, bits: int, *, seed: int = 0) -> int:
    """Writes a model folder that mlx-lm and the daemon load; equal arguments give equal files.

    Args:
        folder: made where missing. A folder that was written whole before is left as it is.
        shape: one of `SHAPES`.
        bits: of the quantised weights; 0 leaves them as they are.
        seed: of the weights.

    Returns:
        Bytes of all weights.
    """
    done = folder / "done"
    if done.exists():
        return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(shape, bits)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    _write_tokenizer(folder, config["vocab_size"])
    shards = _shards(_tensors(config, bits))
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(_write_shard, folder / name, shard, bits, (seed, number))
            for number, (name, shard) in enumerate(zip(names, shards, strict=True))
        ]
        for job in jobs:
            job.result()
    total = sum(tensor.size_bytes for shard in shards for tensor in shard)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index) + "\n", "utf-8")
    done.touch()
    return total


def _tensors(config: dict[str, Any], bits: int) -> list[_Tensor]:
    told = subprocess.run(
        [sys.executable, "-c", _DESCRIBE, json.dumps(config), str(bits), str(_GROUP)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return [_Tensor(name, tuple(shape), *_TYPES[dtype]) for name, shape, dtype in json.loads(told)]


def _shards(tensors: list[_Tensor]) -> list[list[_Tensor]]:
    """In order, each of about `_SHARD_BYTES`."""
    shards: list[list[_Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.size_bytes for t in shards[-1]) + tensor.size_bytes > _SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _write_shard(path: Path, tensors: list[_Tensor], bits: int, seed: tuple[int, int]) -> None:
    """A safetensors file: the length of the header (8 bytes, little-endian), the header as JSON, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size_bytes
        header[tensor.name] = {
            "dtype": tensor.kind,
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    drawn = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors:
            for block in _content(tensor, bits, drawn):
                file.write(block.data)


def _content(tensor: _Tensor, bits: int, drawn: np.random.Generator) -> Iterator[Array]:
    """A tensor's data, block by block.

    A weight is uniform, of standard deviation ``1 / sqrt(inputs)``: of whole numbers ``q`` below ``2^bits``,
    ``scale * q + bias`` with ``scale = sqrt(12 / inputs) / 2^bits`` and ``bias = -scale * (2^bits - 1) / 2``.
    """
    last = tensor.shape[-1]
    scale = math.sqrt(12 / (last * _GROUP)) / (1 << bits)
    for count in _counts(math.prod(tensor.shape)):
        if tensor.kind == "U32":
            yield drawn.integers(0, 1 << 32, count, dtype=np.uint32)
        elif tensor.name.endswith(".scales"):
            yield _bfloat16(np.full(count, scale, np.float32))
        elif tensor.name.endswith(".biases"):
            yield _bfloat16(np.full(count, -scale * ((1 << bits) - 1) / 2, np.float32))
        elif tensor.name.endswith(".bias"):
            yield np.zeros(count, np.uint16)
        elif len(tensor.shape) == 1:
            yield _bfloat16(np.ones(count, np.float32))
        else:
            yield _bfloat16(
                (drawn.random(count, np.float32) - np.float32(0.5)) * np.float32(math.sqrt(12 / last))
            )


def _counts(items: int) -> Iterator[int]:
    for begin in range(0, items, _BLOCK_ITEMS):
        yield min(_BLOCK_ITEMS, items - begin)


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 numbers."""
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def _write_tokenizer(folder: Path, vocabulary_tokens: int) -> None:
    """The demo model's tokenizer, with a word for each token that it lacks; no merge leads to those."""
    demo = demo_model_folder()
    tokenizer = json.loads((demo / "tokenizer.json").read_text("utf-8"))
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    for token_id in range(max(vocabulary.values()) + 1, vocabulary_tokens):
        vocabulary[f"Ġw{token_id:x}"] = token_id  # the leading letter is a space's byte
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    (folder / "tokenizer_config.json").write_text(
        (demo / "tokenizer_config.json").read_text("utf-8"), "utf-8"
    )
