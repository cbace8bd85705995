"""What a prefill step needs, against the graph at other lengths and against memory that was measured."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from daemon.tiny_models import costs_of, profiled
from macmesh_daemon.engine.profile_build import build
from macmesh_daemon.engine.profile_scratch import scratch_of_layers
from macmesh_daemon.engine.stage import load_stage
from macmesh_daemon.engine.step_graph import capture
from macmesh_daemon.engine.step_memory import moments
from macmesh_daemon.models.folder import read_folder
from macmesh_placement import ScratchTerm
from zoo import write_config, write_model


def fused(_query_dim: int, _value_dim: int) -> bool:
    return True


def test_a_dense_layer_keeps_its_residual_its_input_and_two_arrays_of_the_mlp(tmp_path: Path) -> None:
    folder = write_config(tmp_path, "llama", torch_dtype="bfloat16", head_dim=64, intermediate_size=512)
    scratch = profiled(folder).layers[1].scratch
    assert ScratchTerm(0, 2 * (2 * 64 + 2 * 512), 0, 0) in scratch.live
    assert scratch.largest == (ScratchTerm(0, 2 * 512, 0, 0),)


def test_latent_attention_expands_the_keys_of_the_whole_context(tmp_path: Path) -> None:
    scratch = profiled(write_config(tmp_path, "deepseek_v3", torch_dtype="bfloat16")).layers[1].scratch
    assert any(term.bytes_per_key and term.bytes_per_pair for term in scratch.live)
    # The scores of the rotary part: 4 heads of 2 bytes for each pair.
    assert max(term.bytes_per_pair for term in scratch.largest) == 8


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("llama", True),
        ("llama", False),
        ("gpt_oss", True),
        ("gpt_oss", False),
        ("qwen3_moe", True),
        ("deepseek_v3", True),
        ("deepseek_v3", False),
        ("gemma3", True),
        ("phi3", True),
    ],
)
def test_the_formulas_hold_at_other_lengths(name: str, kernels: bool, tmp_path: Path) -> None:
    write_config(tmp_path, name, torch_dtype="bfloat16")
    profile, model = costs_of(tmp_path), build(read_folder(tmp_path, require_weights=False))
    windows = [layer.attention.window_tokens if layer.attention else None for layer in profile.layers]
    scratches = scratch_of_layers(model, windows, lambda _q, _v: kernels)
    for tokens, history in ((300, 1500), (768, 700)):
        peaks = [0] * len(windows)
        largest = [0] * len(windows)
        for moment in moments(capture(model, tokens, history, lambda _q, _v: kernels)):
            if moment.layer >= 0:
                peaks[moment.layer] = max(peaks[moment.layer], moment.live_bytes)
                largest[moment.layer] = max(largest[moment.layer], moment.allocated_bytes)
        for layer, window in enumerate(windows):
            keys = tokens + (history if window is None else min(history, window - 1))
            predicted = scratches[layer].size_bytes(tokens, keys)
            real = peaks[layer] + largest[layer]
            assert real <= predicted <= 1.02 * real + 4096, (layer, real, predicted)


def test_what_mlx_does_not_hand_over_is_estimated_and_said(tmp_path: Path) -> None:
    profile = profiled(write_config(tmp_path, "dbrx"))
    assert profile.scratch_source == "projections"
    assert all(layer.scratch.live[0].bytes_per_token > 0 for layer in profile.layers)


def test_a_capture_computes_nothing_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    folder = read_folder(write_config(tmp_path, "llama", hidden_size=512), require_weights=False)
    model: Any = build(folder)
    kinds, before = [type(layer) for layer in model.layers], mx.get_active_memory()
    capture(model, 512, 4096, fused)
    assert mx.get_active_memory() - before < 1_000_000
    assert [type(layer) for layer in model.layers] == kinds
    assert model.parameters()["model"]["norm"]["weight"].shape == (512,)


def test_a_prefill_step_runs_layer_by_layer_and_a_decode_step_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the host allocates for many layers before the first is done, beyond what the ledger charges."""
    stage = load_stage(write_model(tmp_path, "llama"), 1, 5, 6)
    caches = stage.make_caches(64)
    evaluated: list[int] = []
    run = mx.eval

    def counting(*arrays: Any) -> None:
        evaluated.append(len(arrays))
        run(*arrays)

    monkeypatch.setattr(mx, "eval", counting)
    hidden = mx.zeros((1, 16, 64))
    stage.step([hidden], caches)
    assert len(evaluated) == 4
    stage.step([hidden[:, :1]], caches)
    assert len(evaluated) == 4
