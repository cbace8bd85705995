"""Builds mlx-lm models lazily: every array has its shape and dtype, none has memory."""

import io
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.models.bitlinear_layers import bitnet_quantize

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
            f"{folder.model_id} does not make a {folder.model_type} model: {_explained(problem)}"
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

    def make() -> Module:
        model: Module = model_class(args_class.from_dict(config))
        return model

    model = _without_head(make, config)
    packed = _packed(model)
    _cast(model, config, packed)
    foreign = config.get("quantization_config") or (config.get("text_config") or {}).get(
        "quantization_config"
    )
    if (quantization := config.get("quantization")) is not None:
        _quantise(model, quantization, packed)
    elif foreign and foreign.get("quant_method") == "bitnet":
        model = bitnet_quantize(model, foreign)
    elif foreign:
        raise LocalArchitectureError(
            f"weights in the format {foreign.get('quant_method')!r} are repacked while loading, "
            "so that the config alone does not tell their size: profile a folder that has the weights"
        )
    return model


def _without_head(make: Callable[[], Module], config: Mapping[str, Any]) -> Module:
    """The model as it becomes of weights without an output head, where its loader takes such weights.

    Some architectures leave it to the weights whether the head is tied. Where the config does not say that
    it is not, transformers ties it, and writes no head. Whether such weights make a model is for mlx-lm's own
    ``sanitize`` and strict loading to say; where they do not, the weights have a head.
    """
    model: Any = make()
    text = config.get("text_config") or {}
    flat: Any = tree_flatten(model.parameters())
    rest = {name: array for name, array in flat if not name.endswith("lm_head.weight")}
    says_untied = False in (config.get("tie_word_embeddings"), text.get("tie_word_embeddings"))
    if says_untied or len(rest) == len(flat) or not hasattr(model, "sanitize"):
        return cast("Module", model)
    try:
        model.load_weights(list(model.sanitize(rest).items()), strict=True)
    except (KeyError, ValueError):
        return make()
    return cast("Module", model)


def _packed(model: Any) -> frozenset[str]:
    """Paths of the modules that the architecture itself builds quantised."""
    return frozenset(
        path
        for path, module in model.named_modules()
        if "scales" in module and module["weight"].dtype == mx.uint32
    )


def _cast(model: Module, config: Mapping[str, Any], packed: frozenset[str]) -> None:
    """Gives the parameters the config's dtype, as ``mlx_lm.convert`` does; packed modules keep theirs."""
    text = config.get("text_config") or {}
    names = [source.get(field) for source in (config, text) for field in ("dtype", "torch_dtype")]
    dtype = next((_DTYPES[name] for name in names if name in _DTYPES), mx.bfloat16)
    wanted = getattr(model, "cast_predicate", lambda _path: True)

    done: dict[int, mx.array] = {}  # one array under two names stays one

    def converted(path: str, array: mx.array) -> mx.array:
        keep = (
            not wanted(path)
            or not mx.issubdtype(array.dtype, mx.floating)
            or path.rpartition(".")[0] in packed
        )
        return array if keep else done.setdefault(id(array), array.astype(dtype))

    untyped: Any = model
    untyped.update(tree_map_with_path(converted, untyped.parameters()))


def _quantise(model: Module, quantization: Mapping[str, Any], packed: frozenset[str]) -> None:
    """Quantises what the config says, as ``mlx_lm.convert`` wrote it: a default, and entries per module.

    The default does not hold where the architecture packs its modules itself: it describes those.
    """
    group_size = quantization["group_size"]
    own = getattr(model, "quant_predicate", None)

    def predicate(path: str, module: Module) -> bool | dict[str, Any]:
        if path in quantization:
            entry: bool | dict[str, Any] = quantization[path]
            return entry
        if packed or not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
            return False
        return own(path, module) if own is not None else True

    quantize(
        model,
        group_size=group_size,
        bits=quantization["bits"],
        mode=quantization.get("mode", "affine"),
        class_predicate=predicate,
    )


#: How mlx's strict loading tells tensors that are too many or too few: a count, and all their names.
_MISFITS = {
    re.compile(
        r"Received (\d+) parameters not in model:(.*)\.", re.DOTALL
    ): "{} tensors have no place in it: {}",
    re.compile(r"Missing (\d+) parameters:(.*)\.", re.DOTALL): "{} tensors are missing: {}",
}
_NAMED_TENSORS = 5


def _explained(problem: Exception) -> str:
    """What the loader says, in one short line."""
    for pattern, message in _MISFITS.items():
        if found := pattern.fullmatch(str(problem)):
            names = [name.strip() for name in found[2].split(",")]
            more = ", ..." if len(names) > _NAMED_TENSORS else ""
            return message.format(found[1], ", ".join(names[:_NAMED_TENSORS]) + more)
    text = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
    return text if len(text) <= 300 else f"{text[:297]}..."  # noqa: PLR2004  the line above says it
