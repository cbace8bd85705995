"""A tiny, structurally faithful model for every architecture of mlx-lm.

``configs.json`` maps a name (the mlx-lm module, or a ``model_type`` that mlx-lm maps to one) to a config as a
model folder holds it: small widths, windows of 8 tokens, first dense layers, shared experts, every kind of
cache. `write_config` writes the config alone, `write_model` a whole folder with seeded random weights.
"""

import copy
import json
import shutil
import sys
import tempfile
import types
import zlib
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

CONFIGS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "configs.json").read_text())

WINDOW_TOKENS = 8
"""Sliding windows of all models that have one, shorter than any test prompt."""

METAL_ONLY = frozenset({"bitnet", "muse_spark"})
"""Architectures whose forward pass is a Metal kernel: their shapes are known here, their values are not."""

BROKEN = {"olmo": "mlx-lm adds the name of the mask to the scores of a prompt"}
"""Architectures that the pinned mlx-lm cannot run anywhere, with the reason."""

IMPORT_PROBES = {"olmo": "hf_olmo"}
"""Packages that an architecture's module imports only to see that they are there."""

_EMBEDDING_ROWS = (320, 100_352)


def config(name: str, **overrides: Any) -> dict[str, Any]:
    """A copy of the config of that name, with fields replaced."""
    return {**copy.deepcopy(CONFIGS[name]), **overrides}


def write_config(folder: Path, name: str, **overrides: Any) -> Path:
    """Writes ``config.json`` alone; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(name, **overrides), indent=2))
    return folder


def build_model(name: str, *, seed: int = 0, dtype: str = "float32", **overrides: Any) -> Any:
    """The model with seeded random weights, none of them left constant; evaluated."""
    if name in IMPORT_PROBES:
        sys.modules.setdefault(IMPORT_PROBES[name], types.ModuleType(IMPORT_PROBES[name]))
    mx.random.seed(seed + zlib.crc32(name.encode()))
    fields = config(name, **overrides)
    model_class, args_class = _get_classes(fields)
    model: Any = model_class(args_class.from_dict(fields))
    flat: Any = tree_flatten(model.parameters())
    constant = _constants(dict(flat))
    weights = {
        path: _randomised(path, value, getattr(mx, dtype), constant=path in constant) for path, value in flat
    }
    if hasattr(model, "sanitize"):  # what is loaded again must come out the same
        weights = model.sanitize(weights)
    model.load_weights(list(weights.items()), strict=True)
    mx.eval(model.parameters())
    return model


def write_model(
    folder: Path, name: str, *, seed: int = 0, dtype: str = "float32", shards: int = 2, **overrides: Any
) -> Path:
    """Writes config and weights under mlx-lm's own names, as ``mlx_lm.convert`` does; returns the folder.

    Args:
        folder: Where to.
        name: A name of `CONFIGS`.
        seed: Of the weights.
        dtype: Of the weights, as mlx names it.
        shards: Weight files; one is written without an index.
        overrides: Fields of the config to replace.
    """
    model = build_model(name, seed=seed, dtype=dtype, **overrides)
    write_config(folder, name, **{"torch_dtype": dtype, **overrides})
    flat: Any = tree_flatten(model.parameters())
    write_weights(folder, dict(flat), shards)
    return folder


def shared_model(folder: Path, name: str, *, seed: int) -> Path:
    """A model in float32 that several tests read: the first of them writes it, whichever process that is in.

    Args:
        folder: of all shared models.
        name: of `CONFIGS`.
        seed: of the weights.
    """
    shared = folder / f"{name}-{seed}"
    if not shared.exists():
        folder.mkdir(parents=True, exist_ok=True)
        written = write_model(Path(tempfile.mkdtemp(dir=folder)), name, seed=seed)
        try:
            written.rename(shared)
        except OSError:  # another process was faster
            shutil.rmtree(written)
    return shared


def write_weights(folder: Path, weights: dict[str, mx.array], shards: int) -> None:
    """Writes safetensors files, and an index where there is more than one."""
    metadata = {"format": "mlx"}
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata)
        return
    names = list(weights)
    size = -(-len(names) // shards)
    weight_map: dict[str, str] = {}
    for index in range(shards):
        part = {name: weights[name] for name in names[index * size : (index + 1) * size]}
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        mx.save_safetensors(str(folder / file), part, metadata)
        weight_map |= dict.fromkeys(part, file)
    total = {"total_size": sum(array.nbytes for array in weights.values())}
    text = json.dumps({"metadata": total, "weight_map": weight_map}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text)


def _constants(parameters: dict[str, mx.array]) -> set[str]:
    """Paths of the parameters that a model makes all of one number; found out for all at once."""
    same = {
        path: mx.all(value == value.reshape(-1)[0])
        for path, value in parameters.items()
        if value.size and mx.issubdtype(value.dtype, mx.floating)
    }
    mx.eval(list(same.values()))
    return {path for path, answer in same.items() if answer.item()}


def _randomised(path: str, value: mx.array, dtype: mx.Dtype, *, constant: bool) -> mx.array:
    """Random weights under which every tensor matters and activations stay sane.

    What a model initialises to a constant (norms, biases, sinks, routers) gets noise around it. Projections
    get a gain and embeddings a loss; else the embedding rules the residual stream, and greedy decoding only
    repeats the last token.
    """
    leaf = path.rsplit(".", 1)[-1]
    if leaf == "signs":  # of a Hadamard transform: -1 and +1 only
        return mx.where(mx.random.uniform(shape=value.shape) < 0.5, -1.0, 1.0)
    if value.dtype == mx.uint32:  # packed quantised weights
        return mx.random.randint(0, 1 << 30, value.shape).astype(mx.uint32)
    if not mx.issubdtype(value.dtype, mx.floating):
        return value
    keeps_half = value.dtype == mx.float16
    if leaf == "scales":
        value = mx.random.uniform(0.02, 0.06, value.shape)
    elif leaf == "biases":
        value = mx.random.normal(value.shape) * 0.01 - 0.06
    elif constant:
        spread = 0.1 if value.ndim <= 1 else value.shape[-1] ** -0.5
        value = value + spread * mx.random.normal(value.shape)
    elif value.ndim > 1 and leaf == "weight":
        value = value * (0.25 if value.shape[0] in _EMBEDDING_ROWS else 3.0)
    return value.astype(mx.float16 if keeps_half else dtype)
