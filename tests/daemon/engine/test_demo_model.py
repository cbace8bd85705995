import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx import nn
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.generate import generate_step
from mlx_lm.models import qwen3

from macmesh_daemon.engine.demo_corpus import parse_corpus, read_corpus
from macmesh_daemon.engine.demo_model import CONFIG, Recipe, make_demo_model
from macmesh_daemon.engine.demo_tokenizer import chat_text
from macmesh_daemon.engine.demo_trainer import Qwen3Trainer
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.models.tokenizer import ModelTokenizer
from support.transformers import bring_transformers_in

MEGABYTE = 1_000_000


def answer(question: str, tokens: int) -> str:
    """What unmodified mlx-lm says, greedily."""
    bring_transformers_in()
    model, tokenizer = mlx_lm.load(str(demo_model_folder()))[:2]
    messages = [{"role": "user", "content": question}]
    prompt = cast("Any", tokenizer).apply_chat_template(messages, add_generation_prompt=True)
    ids: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=tokens):
        if token in tokenizer.eos_token_ids:
            break
        ids.append(int(token))
    return str(tokenizer.decode(ids))


def test_the_shipped_folder_is_what_its_files_say() -> None:
    folder = demo_model_folder()
    config = json.loads((folder / "config.json").read_text())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("model-*.safetensors"))
    tensors = {shard.name: cast("dict[str, mx.array]", mx.load(str(shard))) for shard in shards}
    arrays = [array for held in tensors.values() for array in held.values()]
    tokenizer = ModelTokenizer.from_folder(folder)

    assert config == CONFIG
    assert len(shards) == 2
    assert index["weight_map"] == {name: shard for shard, held in tensors.items() for name in held}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays)
    assert {array.dtype for array in arrays} == {mx.bfloat16}
    assert tokenizer.vocab_size == config["vocab_size"]
    assert tokenizer.eos_token_ids == {0, 2}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3 * MEGABYTE


def test_a_layer_weighs_at_least_as_much_as_the_embedding() -> None:
    weights = Qwen3Trainer(CONFIG, seed=0).weights
    layer = sum(array.size for name, array in weights.items() if name.startswith("model.layers.0."))
    assert layer >= weights["model.embed_tokens.weight"].size


def test_the_shipped_model_says_what_it_learned() -> None:
    for question in ("What is macmesh?", "how does a plan become real"):
        learned = next(p.answer for p in read_corpus() if p.question.lower().startswith(question.lower()))
        said = answer(question, tokens=40)
        words = said.split()[:-1]
        assert len(words) > 12
        assert sum(word in learned.split() for word in words) > 0.8 * len(words)


def test_a_finished_answer_ends() -> None:
    assert answer("What is a voter?", tokens=60).endswith(".")


def test_the_corpus_text_is_the_rendered_template() -> None:
    tokenizer = ModelTokenizer.from_folder(demo_model_folder())
    exchange = [{"role": "user", "content": "What is a plan?"}, {"role": "assistant", "content": "A plan."}]
    rendered = tokenizer.render_chat_template(exchange, add_generation_prompt=False)
    assert chat_text("What is a plan?", "A plan.") == rendered + "<|endoftext|>"


@pytest.mark.parametrize("text", ["no question", "? no answer", "? a question\nits answer\n\nno question"])
def test_a_broken_corpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a passage must be"):
        parse_corpus(text)


def test_gradients_equal_those_of_mlx() -> None:
    config = CONFIG | {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        "head_dim": 8,
        "vocab_size": 40,
    }
    trainer, draw = Qwen3Trainer(config, seed=1), np.random.default_rng(2)
    for weight in trainer.weights.values():
        if weight.ndim == 1:
            weight[:] = draw.normal(1, 0.2, weight.shape)
    inputs = draw.integers(0, 40, (2, 10))
    targets, mask = np.roll(inputs, -1, 1), np.ones((2, 10), np.float32)
    mask[1, 6:] = 0
    loss = trainer.loss_and_gradients(inputs, targets, mask)

    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))  # type: ignore[no-untyped-call]
    model.update(tree_unflatten([(name, mx.array(array)) for name, array in trainer.weights.items()]))

    def mean_loss() -> mx.array:
        counted = mx.array(mask)
        return (
            nn.losses.cross_entropy(model(mx.array(inputs)), mx.array(targets)) * counted
        ).sum() / counted.sum()

    with mx.stream(mx.cpu):
        expected_loss, expected = value_and_grad(model, mean_loss)()
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    flat = cast("dict[str, mx.array]", tree_flatten(expected, destination={}))
    assert flat.keys() == trainer.gradients.keys()
    for name, array in flat.items():
        gradient = np.array(array)
        assert np.abs(gradient - trainer.gradients[name]).max() < 1e-5 * np.abs(gradient).max() + 1e-8, name


def test_training_learns_and_repeats_itself(tmp_path: Path) -> None:
    recipe = Recipe(steps=3, batch=1, window_tokens=48, warmup_steps=1)
    losses = [make_demo_model(tmp_path / name, recipe) for name in ("one", "two")]
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    random = make_demo_model(tmp_path / "three", Recipe(steps=1, batch=1, window_tokens=48))

    assert files == sorted(file.name for file in demo_model_folder().iterdir())
    assert losses[0] == losses[1] < random
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_the_shipped_tokenizer_is_what_the_corpus_gives(tmp_path: Path) -> None:
    make_demo_model(tmp_path, Recipe(steps=0))
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (demo_model_folder() / name).read_bytes(), name


@pytest.mark.process
def test_the_command_makes_a_folder(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "macmesh_daemon.engine.demo_model",
        str(tmp_path / "model"),
        "--steps",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["size_bytes"] < 3 * MEGABYTE
    bring_transformers_in()
    mlx_lm.load(str(tmp_path / "model"))


def test_the_folder_is_found_without_mlx() -> None:
    check = (
        "import sys; from macmesh_daemon.models.demo import demo_model_folder; demo_model_folder();"
        " assert 'mlx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], timeout=120, check=True)
