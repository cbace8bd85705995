"""`daemonctl plan FOLDER --cluster`: the profile process reads a real model folder."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from macmesh_daemon.models.fake_hub import FakeHub

from .conftest import Run

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, MIDDLE, VOCAB, LAYERS = 64, 4, 2, 16, 128, 512, 6
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "intermediate_size": MIDDLE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_SIZE,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
LAYER_SHAPES = {
    "self_attn.q_proj.weight": [HEADS * HEAD_SIZE, HIDDEN],
    "self_attn.k_proj.weight": [KV_HEADS * HEAD_SIZE, HIDDEN],
    "self_attn.v_proj.weight": [KV_HEADS * HEAD_SIZE, HIDDEN],
    "self_attn.o_proj.weight": [HIDDEN, HEADS * HEAD_SIZE],
    "self_attn.q_norm.weight": [HEAD_SIZE],
    "self_attn.k_norm.weight": [HEAD_SIZE],
    "mlp.gate_proj.weight": [MIDDLE, HIDDEN],
    "mlp.up_proj.weight": [MIDDLE, HIDDEN],
    "mlp.down_proj.weight": [HIDDEN, MIDDLE],
    "input_layernorm.weight": [HIDDEN],
    "post_attention_layernorm.weight": [HIDDEN],
}
LAYER_BYTES = 2 * sum(math.prod(shape) for shape in LAYER_SHAPES.values())

pytestmark = pytest.mark.process


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A Qwen3 of six small layers in bfloat16, all zeros."""
    shapes = {"model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN]}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in LAYER_SHAPES.items()}
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    folder = tmp_path / "tiny-qwen3"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return folder


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MACMESH_DATA_DIR", str(tmp_path / "data"))
    path = tmp_path / "cluster.json"
    node = {"ram_bytes": 8 * 10**9, "usable_bytes": 10**9, "bandwidth_gb_per_s": 100}
    path.write_text(json.dumps([{"name": name, **node} for name in ("a", "b")]))
    return path


def test_plans_to_the_byte(run: Run, model_folder: Path, two_nodes: Path) -> None:
    outcome = run("plan", str(model_folder), "--cluster", str(two_nodes), "--stages", "2", "--json")
    assert outcome.code == 0, outcome.err
    stages = outcome.json["stages"]
    assert [s["first_layer"] for s in stages] == [0, stages[0]["end_layer"]]
    assert outcome.json["context_tokens"] == 4096
    for stage in stages:
        entries = {e["name"]: e["size_bytes"] for e in stage["ledger"]["entries"]}
        layers = stage["end_layer"] - stage["first_layer"]
        assert entries["weights"] == layers * LAYER_BYTES
        assert entries["cache"] == layers * 4096 * 2 * KV_HEADS * HEAD_SIZE * 2


def test_broken_folders(run: Run, model_folder: Path, two_nodes: Path) -> None:
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    outcome = run("plan", str(model_folder), "--cluster", str(two_nodes), "--json")
    assert outcome.code == 1
    assert "model.safetensors" in outcome.err
    assert outcome.json["error"]["reason"].startswith("MODEL_")
    gone = run("plan", str(model_folder / "nowhere"), "--cluster", str(two_nodes), "--json")
    assert gone.code == 1
    assert gone.json["error"]["reason"] == "MODEL_NOT_FOUND"


def test_a_model_on_a_hub_is_planned_from_its_headers(run: Run, model_folder: Path, two_nodes: Path) -> None:
    argv = ("--cluster", str(two_nodes), "--stages", "2", "--json")
    here = run("plan", str(model_folder), *argv)
    with FakeHub({"acme/tiny-qwen3": model_folder}).running() as hub:

        def there(model: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "macmesh_daemon.cli.daemonctl", "plan", model, *argv]
            env = {**os.environ, "HF_ENDPOINT": hub.endpoint}  # read when the hub's client is imported
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

        found, missing = there("acme/tiny-qwen3"), there("acme/nothing")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["stages"] == here.json["stages"]
    assert hub.served_bytes < (model_folder / "model.safetensors").stat().st_size
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["error"]["reason"] == "MODEL_NOT_FOUND"
