"""Make the demo model: a small, real Qwen3 that learned the documentation of macmesh.

`python -m macmesh_daemon.engine.demo_model FOLDER [--steps N] [--seed S]` writes a folder in Hugging Face
format that unmodified mlx-lm loads. The folder that ships with the package (`macmesh_daemon.models.demo`) was
made with the defaults. Equal arguments give equal files on one machine; another processor may round
differently. Set `OPENBLAS_NUM_THREADS=1`: the matrices are small, so more threads only wait for each other.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from macmesh_daemon.engine.demo_corpus import Passage, read_corpus
from macmesh_daemon.engine.demo_tokenizer import (
    END_OF_TEXT,
    END_OF_TURN,
    SPECIAL_TOKENS,
    chat_text,
    save_tokenizer,
    train_tokenizer,
)
from macmesh_daemon.engine.demo_trainer import Array, Ids, Qwen3Trainer

#: Layers outweigh the embedding (12 x 0.2 MB against 0.2 MB), so the planner's natural answer for three nodes
#: is three stages.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": SPECIAL_TOKENS.index(END_OF_TURN),
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 96,
    "initializer_range": 0.02,
    "intermediate_size": 240,
    "max_position_embeddings": 2048,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 12,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 1024,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the model is trained. The defaults made the folder that ships."""

    #: Optimiser steps.
    steps: int = 600
    #: Of the initial weights and of the order of the text.
    seed: int = 7
    #: Windows per step.
    batch: int = 6
    #: Tokens of a window; the longest passage fits.
    window_tokens: int = 208
    #: Reached after the warm-up; a cosine falls to a hundredth of it.
    peak_learning_rate: float = 4e-3
    #: Steps of linear growth from almost zero.
    warmup_steps: int = 40


def make_demo_model(folder: Path, recipe: Recipe | None = None, *, report_every_steps: int = 0) -> float:
    """Write the model into `folder`, which is made if it is absent; files of the same names are replaced.

    Args:
        folder: Where to.
        recipe: How to train; None for the defaults.
        report_every_steps: Print the loss to stderr so often; 0 for never.

    Returns:
        The mean loss of the last ten steps, in nats per token; NaN without steps.
    """
    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    passages = read_corpus()
    tokenizer = train_tokenizer((f"{p.question}\n{p.answer}" for p in passages), CONFIG["vocab_size"])
    trainer, loss = _train(tokenizer, passages, recipe, report_every_steps)
    save_tokenizer(tokenizer, folder, CONFIG["max_position_embeddings"])
    _save_configs(folder)
    _save_weights(trainer.weights, folder)
    return loss


def _train(
    tokenizer: Tokenizer, passages: Sequence[Passage], recipe: Recipe, report_every_steps: int
) -> tuple[Qwen3Trainer, float]:
    trainer = Qwen3Trainer(CONFIG, recipe.seed)
    recent: list[float] = []
    batches = _batches(tokenizer, passages, recipe)
    for step in range(recipe.steps):
        loss = trainer.step(*next(batches), _learning_rate(step, recipe))
        recent = [*recent[-9:], loss]
        if report_every_steps and (step + 1) % report_every_steps == 0:
            print(f"step {step + 1} of {recipe.steps}: loss {sum(recent) / len(recent):.3f}", file=sys.stderr)  # noqa: T201  progress of a command
    return trainer, sum(recent) / len(recent) if recent else math.nan


def _learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < recipe.warmup_steps:
        return recipe.peak_learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.peak_learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def _batches(
    tokenizer: Tokenizer, passages: Sequence[Passage], recipe: Recipe
) -> Iterator[tuple[Ids, Ids, Array]]:
    """Inputs, targets and mask, each of shape (batch, window), without end.

    Every window starts where a passage starts, as it will when the model is used, and holds whole passages;
    only one that is longer than a window is cut.
    """
    order = random.Random(recipe.seed)  # noqa: S311  reproducible on purpose
    windows: list[list[int]] = []
    while True:
        while len(windows) < recipe.batch:
            texts = [chat_text(order.choice(_phrasings(p.question)), p.answer) for p in passages]
            texts += [f"{p.answer}{END_OF_TEXT}" for p in passages]
            order.shuffle(texts)
            windows += _pack(
                [encoding.ids for encoding in tokenizer.encode_batch(texts)], recipe.window_tokens + 1
            )
        batch, windows = windows[: recipe.batch], windows[recipe.batch :]
        longest = max(len(ids) for ids in batch)
        padded = np.array([ids + [0] * (longest - len(ids)) for ids in batch])
        lengths = np.array([len(ids) for ids in batch])
        mask = np.arange(1, longest)[None] < lengths[:, None]
        yield padded[:, :-1], padded[:, 1:], mask.astype(np.float32)


def _phrasings(question: str) -> list[str]:
    """Ways in which people type a question; the corpus's own counts twice."""
    bare = question.rstrip("?")
    return [question, question, bare, question.lower(), bare.lower()]


def _pack(documents: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Fill windows of at most `limit` tokens with documents, in order."""
    windows: list[list[int]] = [[]]
    for document in documents:
        if windows[-1] and len(windows[-1]) + len(document) > limit:
            windows.append([])
        windows[-1] = (windows[-1] + document)[:limit]
    return windows


def _save_configs(folder: Path) -> None:
    generation = {
        "do_sample": False,
        "eos_token_id": [SPECIAL_TOKENS.index(END_OF_TURN), SPECIAL_TOKENS.index(END_OF_TEXT)],
        "pad_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
    }
    for name, value in (("config.json", CONFIG), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _save_weights(trained: Mapping[str, Array], folder: Path) -> None:
    """Two shards in bfloat16: the embedding and the lower layers, then the upper layers and the norm."""
    weights = {name: mx.array(array).astype(mx.bfloat16) for name, array in trained.items()}
    half = CONFIG["num_hidden_layers"] // 2
    names: tuple[list[str], list[str]] = ([], [])
    for name in sorted(weights):
        parts = name.split(".")
        upper = int(parts[2]) >= half if parts[1] == "layers" else parts[1] == "norm"
        names[upper].append(name)
    weight_map = {}
    for number, members in enumerate(names, start=1):
        file_name = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        mx.save_safetensors(
            str(folder / file_name), {name: weights[name] for name in members}, metadata={"format": "mlx"}
        )
        weight_map.update(dict.fromkeys(members, file_name))
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in weights.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m macmesh_daemon.engine.demo_model", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    options = parser.parse_args(arguments)
    if options.steps < 0:
        parser.error("--steps must not be negative")
    loss = make_demo_model(
        options.folder, Recipe(steps=options.steps, seed=options.seed), report_every_steps=50
    )
    size_bytes = sum(file.stat().st_size for file in options.folder.iterdir())
    print(json.dumps({"folder": str(options.folder), "loss": round(loss, 4), "size_bytes": size_bytes}))  # noqa: T201  output of a command
    return 0


if __name__ == "__main__":
    sys.exit(main())
