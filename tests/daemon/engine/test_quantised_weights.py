"""Quantised weights: headers and config alone predict what mlx-lm loads of what mlx-lm wrote."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import load_model, quantize_model

from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.models.errors import LocalArchitectureError, LocalModelFolderError
from macmesh_daemon.models.folder import read_folder
from zoo import build_model, config, write_config, write_model, write_weights


def converted(folder: Path, name: str, **quantisation: Any) -> Path:
    """A folder as ``mlx_lm.convert`` writes it: bfloat16 where the model allows, then quantised."""
    model = build_model(name)
    wanted = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, array: mx.array) -> mx.array:
        floating = wanted(path) and mx.issubdtype(array.dtype, mx.floating)
        return array.astype(mx.bfloat16) if floating else array

    model.update(tree_map_with_path(cast, model.parameters()))
    fields = config(name, torch_dtype="bfloat16")
    if quantisation:
        with contextlib.redirect_stdout(io.StringIO()):
            model, fields = quantize_model(model, fields, **quantisation)
        for path, module in model.named_modules():  # convert does not note what its predicate leaves out
            if quantisation.get("quant_predicate") and "weight" in module and not hasattr(module, "bits"):
                fields["quantization"][path] = False
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    flat: Any = tree_flatten(model.parameters())
    write_weights(folder, dict(flat), shards=2)
    return folder


def shapes(model: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    flat: Any = tree_flatten(model.parameters())
    return {name: (array.shape, str(array.dtype)) for name, array in flat}


def built(folder: Path) -> Any:
    return build(read_folder(folder, require_weights=False))


def without_weights(folder: Path) -> Path:
    for file in folder.glob("model*"):
        file.unlink()
    return folder


def mixed(path: str, _module: Any) -> bool | dict[str, Any]:
    """As mlx-lm's own recipes: more bits for what matters more. And some modules are left alone."""
    if path.endswith(("lm_head", "embed_tokens")):
        return {"group_size": 64, "bits": 6}
    if "v_proj" in path:
        return {"group_size": 32, "bits": 8}
    return "layers.1." not in path and {"group_size": 32, "bits": 4}


FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "4 bit": {"group_size": 32, "bits": 4},
    "5 bit": {"group_size": 32, "bits": 5},
    "8 bit": {"group_size": 32, "bits": 8},
    "mixed": {"group_size": 32, "bits": 4, "quant_predicate": mixed},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "nvfp4 with a scale per expert": {"group_size": 16, "bits": 4, "mode": "nvfp4", "global_scale": True},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
}


@pytest.mark.parametrize("name", ["minimax", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("form", FORMATS)
def test_headers_and_config_predict_what_is_loaded(name: str, form: str, tmp_path: Path) -> None:
    folder = converted(tmp_path / "m", name, **FORMATS[form])
    loaded = shapes(load_model(folder, lazy=True)[0])
    assert shapes(built(folder)) == loaded
    assert shapes(built(without_weights(folder))) == loaded


def test_a_gate_keeps_more_bits(tmp_path: Path) -> None:
    folder = without_weights(converted(tmp_path / "m", "minimax", group_size=32, bits=5))
    model = built(folder)
    moe = model.layers[0].block_sparse_moe
    assert (moe.gate.bits, moe.switch_mlp.gate_proj.bits) == (8, 5)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "mxfp4", "compressed-tensors"])
def test_the_config_alone_does_not_tell_a_foreign_format(method: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", "llama", quantization_config={"quant_method": method})
    with pytest.raises(LocalArchitectureError, match=method):
        built(folder)


def test_the_config_alone_tells_ternary_weights(tmp_path: Path) -> None:
    """Two bits for a weight of the projections, packed four to a byte, whatever is at hand."""
    ternary = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
    folder = write_config(tmp_path / "m", "bitnet", quantization_config=ternary)
    predicted = shapes(built(folder))
    assert "mlx.core.uint8" in {dtype for _, dtype in predicted.values()}
    flat: Any = tree_flatten(built(folder).parameters())
    write_weights(folder, dict(flat), shards=1)
    assert shapes(built(folder)) == shapes(load_model(folder)[0]) == predicted


def awq(folder: Path) -> Path:
    """A llama whose projections are packed as AutoAWQ does: transposed, eight 4-bit columns in an int."""
    model = build_model("llama")
    flat: Any = tree_flatten(model.parameters())
    weights = {}
    for path, array in flat:
        if path.startswith("model.layers") and path.endswith("proj.weight"):
            outputs, inputs = array.shape
            prefix = path.removesuffix(".weight")
            weights[f"{prefix}.qweight"] = mx.zeros((inputs, outputs // 8), mx.int32)
            weights[f"{prefix}.qzeros"] = mx.zeros((inputs // 32, outputs // 8), mx.int32)
            weights[f"{prefix}.scales"] = mx.ones((inputs // 32, outputs), mx.float16)
        else:
            weights[path] = array.astype(mx.float16)
    write_config(folder, "llama", quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32})
    write_weights(folder, weights, shards=1)
    return folder


def test_packed_weights_of_another_format_are_counted_as_loaded(tmp_path: Path) -> None:
    folder = awq(tmp_path / "m")
    loaded = load_model(folder)[0]
    model = built(folder)
    assert shapes(model) == shapes(loaded)
    assert model.layers[0].mlp.up_proj.bits == 4


def test_block_scaled_fp8_is_counted_as_it_is_unpacked(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "deepseek_v3", dtype="bfloat16", shards=1)
    path = folder / "model.safetensors"
    weights: Any = mx.load(str(path))
    name = "model.layers.0.mlp.up_proj.weight"
    rows, columns = weights[name].shape
    weights[f"{name}_scale_inv"] = mx.ones((-(-rows // 128), -(-columns // 128)))
    weights[name] = mx.to_fp8(weights[name])
    mx.eval(weights)
    write_weights(folder, weights, shards=1)
    loaded = load_model(folder)[0]
    assert shapes(built(folder)) == shapes(loaded)
    assert shapes(loaded)[name] == ((rows, columns), "mlx.core.bfloat16")


def test_weights_that_do_not_belong_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "llama", shards=1)
    weights: Any = mx.load(str(folder / "model.safetensors"))
    weights["model.layers.0.mlp.stray.weight"] = mx.zeros(4)
    write_weights(folder, weights, shards=1)
    with pytest.raises(
        LocalModelFolderError, match=r"1 tensors have no place in it: model\.layers\.0\.mlp\.stray"
    ):
        built(folder)


def test_weights_that_lack_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "llama", shards=1)
    weights: Any = mx.load(str(folder / "model.safetensors"))
    kept = {name: array for name, array in weights.items() if ".layers.3." not in name}
    mx.eval(kept)
    write_weights(folder, kept, shards=1)
    with pytest.raises(LocalModelFolderError, match=r"9 tensors are missing: model\.layers\.3\..*\.\.\.$"):
        built(folder)


def test_layers_that_the_model_drops_are_no_misfit(tmp_path: Path) -> None:
    """Layers that predict further tokens lie in the weights of DeepSeek-V3; mlx-lm leaves them out."""
    folder = write_model(tmp_path / "m", "deepseek_v3", shards=1)
    expected = shapes(built(folder))
    weights: Any = mx.load(str(folder / "model.safetensors"))
    weights["model.layers.61.enorm.weight"] = mx.zeros(64)
    mx.eval(weights)
    write_weights(folder, weights, shards=1)
    assert shapes(built(folder)) == expected


@pytest.mark.parametrize(
    ("name", "says", "tied"),
    [
        ("gemma3_text", {}, True),
        ("gemma3_text", {"tie_word_embeddings": False}, False),
        ("recurrent_gemma", {}, True),
        ("minicpm", {}, True),
        ("qwen2_moe", {}, False),
    ],
)
def test_the_loader_decides_whether_the_head_is_tied(
    name: str, says: dict[str, bool], tied: bool, tmp_path: Path
) -> None:
    """Where the config does not say, transformers ties: no head lies in the weights, if the loader can go without."""
    fields = {key: value for key, value in config(name).items() if key != "tie_word_embeddings"}
    for part in ("config", "headers"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({**fields, **says, "torch_dtype": "float32"}))
    model = build_model(name)
    flat: Any = tree_flatten(model.parameters())
    weights = {path: array for path, array in flat if not tied or path != "lm_head.weight"}
    write_weights(tmp_path / "headers", weights, shards=1)
    of_headers, of_config = built(tmp_path / "headers"), built(tmp_path / "config")
    assert shapes(of_headers) == shapes(of_config)
    for built_model in (of_headers, of_config):
        parameters: Any = tree_flatten(built_model.parameters())
        once = {id(array): array for _, array in parameters}
        assert sum(array.nbytes for array in once.values()) == sum(array.nbytes for array in weights.values())
