"""Builds mlx-lm models lazily: every array has its shape and dtype, none has memory."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_map_with_path
from mlx_lm import utils as mlx_lm_utils

from macmesh_daemon.engine.stand_ins import importable
from macmesh_daemon.models.errors import LocalArchitectureError, LocalModelFolderError
from macmesh_daemon.models.folder import ModelFolder

#: How configs spell the dtype of unquantised weights.
_DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


def build(folder: ModelFolder) -> Module:
    """The model of a folder, lazily: as mlx-lm loads it, or from the config where there are no weights.

    With weights, mlx-lm's own loader runs unchanged: it reads the headers, makes lazy arrays, and lets the
    model's ``sanitize`` dequantise, merge or drop them. Nothing is evaluated.

    Raises:
        LocalArchitectureError: mlx-lm does not have the architecture.
        LocalModelFolderError: Config and weights do not make a model.
    """
    mx.set_default_device(mx.cpu)
    if "model_file" in folder.config:
        raise LocalArchitectureError(
            f"{folder.model_type} needs code of its own ({folder.config['model_file']}), "
            "which macmesh never runs"
        )
    with importable(folder.model_type):
        return _build(folder)


def _build(folder: ModelFolder) -> Module:
    _require_architecture(folder)
    try:
        with redirect_stdout(io.StringIO()):
            if folder.weight_files:
                model: Module = mlx_lm_utils.load_model(folder.path, lazy=True, strict=True)[0]
            else:
                model = _from_config(mlx_lm_utils.load_config(folder.path))
    except LocalArchitectureError:
        raise
    except Exception as problem:
        raise LocalModelFolderError(
            f"{folder.path} does not make a {folder.model_type} model: "
            f"{type(problem).__name__}: {_short(problem)}"
        ) from problem
    return model


def _require_architecture(folder: ModelFolder) -> None:
    try:
        mlx_lm_utils._get_classes(dict(folder.config))  # noqa: SLF001  the loader's own lookup
    except (ValueError, SystemExit) as problem:  # a module may exit where a package is missing
        raise LocalArchitectureError(
            f"the installed mlx-lm has no architecture {folder.model_type!r}"
        ) from problem


def _from_config(config: dict[str, Any]) -> Module:
    model_class, args_class = mlx_lm_utils._get_classes(config)  # noqa: SLF001  as above
    model: Module = model_class(args_class.from_dict(config))
    _cast(model, config)
    quantization = config.get("quantization")
    if quantization is None and (foreign := config.get("quantization_config")):
        raise LocalArchitectureError(
            f"weights in the format {foreign.get('quant_method')!r} are repacked while loading, "
            "so that the config alone does not tell their size: profile a folder that has the weights"
        )
    if quantization is not None:
        _quantise(model, quantization)
    return model


def _cast(model: Module, config: Mapping[str, Any]) -> None:
    """Gives the parameters the config's dtype, as ``mlx_lm.convert`` does."""
    text = config.get("text_config") or {}
    names = [source.get(field) for source in (config, text) for field in ("dtype", "torch_dtype")]
    dtype = next((_DTYPES[name] for name in names if name in _DTYPES), mx.bfloat16)
    wanted = getattr(model, "cast_predicate", lambda _path: True)

    def cast(path: str, array: mx.array) -> mx.array:
        keep = not wanted(path) or not mx.issubdtype(array.dtype, mx.floating)
        return array if keep else array.astype(dtype)

    untyped: Any = model
    untyped.update(tree_map_with_path(cast, untyped.parameters()))


def _quantise(model: Module, quantization: Mapping[str, Any]) -> None:
    """Quantises what the config says, as ``mlx_lm.convert`` wrote it: a default, and entries per module."""
    group_size = quantization["group_size"]
    own = getattr(model, "quant_predicate", None)

    def predicate(path: str, module: Module) -> bool | dict[str, Any]:
        if path in quantization:
            entry: bool | dict[str, Any] = quantization[path]
            return entry
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
            return False
        return own(path, module) if own is not None else True

    quantize(
        model,
        group_size=group_size,
        bits=quantization["bits"],
        mode=quantization.get("mode", "affine"),
        class_predicate=predicate,
    )


def _short(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 300 else f"{text[:297]}..."  # noqa: PLR2004  the line above says it
