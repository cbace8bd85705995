"""What replay changes on a device: how far a replayed stream stays with the one that was interrupted.

    python bench/replay.py [--shape least|tiny|7b|32b] [--bits N] [--prompt N] [--tokens N] [--cuts N] [--after N]

A stream is decoded token by token. For cuts all along it, the prompt and the tokens until there are read as one
prompt, in the chunks in which the engine reads prompts, and the stream goes on from there, as it does after the loss
of a node. Delivered tokens never change; what may differ is what comes after the cut, because a device computes a
prompt with other kernels, which round otherwise, than one token.

Prints JSON: of all cuts, how many go on identically (greedy; and sampled at temperature 1 with the keys of a seed),
how many tokens are equal until the first that differs, how far the log probabilities of the token after the cut are
apart, and how near to each other the two likeliest tokens were where a greedy stream left the other. Weights are
random, so the likeliest tokens lie nearer to each other than those of a trained model: an upper bound.
"""

import argparse
import json
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from random_model import SHAPES, default_folder, write_model

SEED = 7


def number(array: mx.array) -> float:
    """The value of an array of one."""
    return float(np.asarray(array))


def say(what: str) -> None:
    """Progress, for people."""
    sys.stderr.write(f"{what}\n")


class Stream:
    """A model and one stream's caches."""

    def __init__(self, model: Any, chunk_tokens: int) -> None:
        self._model = model
        self._chunk_tokens = chunk_tokens
        self._caches = make_prompt_cache(model)

    def read(self, tokens: list[int]) -> None:
        """Read all but the last token in chunks, as mlx-lm and the engine do."""
        for begin in range(0, len(tokens) - 1, self._chunk_tokens):
            chunk = tokens[begin : min(begin + self._chunk_tokens, len(tokens) - 1)]
            self._model(mx.array([chunk]), cache=self._caches)
            mx.eval([cache.state for cache in self._caches])

    def step(self, token: int) -> mx.array:
        """The log probabilities after one more token; float32, shape (vocabulary,)."""
        logits: mx.array = self._model(mx.array([[token]]), cache=self._caches)[0, -1].astype(mx.float32)
        return logits - mx.logsumexp(logits)


def choose(log_probabilities: mx.array, position: int, *, sampled: bool) -> int:
    """The token at a position of the output: the likeliest, or drawn with the position's own key."""
    if sampled:
        return int(number(mx.random.categorical(log_probabilities, key=mx.random.key(SEED << 32 | position))))
    return int(number(mx.argmax(log_probabilities)))


def run(
    model: Any, chunk: int, prompt: list[int], tokens: int, *, sampled: bool
) -> tuple[list[int], list[mx.array]]:
    """A stream from its prompt: its tokens, and the log probabilities that each was chosen by."""
    stream = Stream(model, chunk)
    stream.read(prompt)
    last, chosen, seen = prompt[-1], [], []
    for position in range(tokens):
        seen.append(stream.step(last))
        last = choose(seen[-1], position, sampled=sampled)
        chosen.append(last)
    return chosen, seen


def gap(log_probabilities: mx.array) -> float:
    """How far the likeliest token is above the next."""
    two = mx.topk(log_probabilities, 2)
    return number(mx.abs(two[0] - two[1]))


def measure(model: Any, arguments: argparse.Namespace, prompt: list[int], *, sampled: bool) -> dict[str, Any]:
    """Cuts all along one stream."""
    whole, seen = run(model, arguments.chunk, prompt, arguments.tokens, sampled=sampled)
    say(f"{'sampled' if sampled else 'greedy'}: {len(whole)} tokens, {arguments.cuts} cuts")
    cuts = np.linspace(1, arguments.tokens - arguments.after, arguments.cuts).round().astype(int).tolist()
    equal, apart, near, first = [], [], [], 0
    for cut in cuts:
        stream = Stream(model, arguments.chunk)
        stream.read(prompt + whole[:cut])
        last, same = whole[cut - 1], 0
        for position in range(cut, cut + arguments.after):
            now = stream.step(last)
            if position == cut:
                apart.append(number(mx.max(mx.abs(now - seen[cut]))))
            last = choose(now, position, sampled=sampled)
            if last != whole[position]:
                near.append(gap(seen[position]))
                first += position == cut
                break
            same += 1
        equal.append(same)
    return {
        "cuts": len(cuts),
        "identical": sum(same == arguments.after for same in equal),
        "differs_at_once": first,
        "tokens_after": arguments.after,
        "equal_tokens_mean": round(statistics.mean(equal), 2),
        "log_probability_apart_largest": max(apart),
        "log_probability_apart_median": statistics.median(apart),
        "top_two_apart_where_it_left_median": statistics.median(near) if near else None,
        "top_two_apart_median": statistics.median(gap(row) for row in seen),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--bits", type=int, default=4, help="0: not quantised")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--cuts", type=int, default=24)
    parser.add_argument("--after", type=int, default=32, help="tokens to go on with after each cut")
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--model", type=Path, help="folder of the weights, written where it is empty")
    given = parser.parse_args(arguments)
    if given.after >= given.tokens:
        parser.error("--after must be less than --tokens")
    folder = given.model or default_folder(given.shape, given.bits)
    say(f"weights in {folder}")
    write_model(folder, given.shape, given.bits)
    say("loading")
    model, config = load_model(folder)
    prompt = np.random.default_rng(SEED).integers(0, config["vocab_size"], given.prompt).tolist()
    report = {
        "format": "macmesh-bench-replay/1",
        "shape": given.shape,
        "bits": given.bits,
        "device": str(mx.default_device()),
        "machine": platform.platform(),
        "mlx": version("mlx"),
        "prompt_tokens": given.prompt,
        "greedy": measure(model, given, prompt, sampled=False),
        "sampled": measure(model, given, prompt, sampled=True),
    }
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
