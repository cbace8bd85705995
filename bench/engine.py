"""The engine beside mlx-lm's own generation, on this machine's GPU or CPU: one JSON object per measurement.

    python bench/engine.py [--shape tiny|7b|32b] [--stages N ...] [--gpus N] [--what decode,many,prefill,gap]

A model of random weights (4 bits, as Qwen2.5 of that size) is written to a folder once. What is measured, in processes
of its own:

* ``native``: mlx-lm's `generate_step`, with nothing else in the process;
* ``decode``: one request through workers, for each number of stages: tokens per second, milliseconds per step, what the
  stages' time went into;
* ``many``: as many requests at once as stages, and eight, beside one;
* ``prefill``: the time of a long prompt, for each number of stages;
* ``gap``: the time between two tokens of a running request while a prompt of 4,000 tokens arrives.

With ``--gpus N`` stage k uses GPU k modulo N. The workers are driven as the daemon does it, without cluster and gRPC.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.supervisor.interface import Worker
from macmesh_daemon.supervisor.local_plan import even_cuts, local_plan
from macmesh_daemon.supervisor.process import WorkerProcess
from macmesh_daemon.supervisor.verify import running_plan

_SHAPES: dict[str, dict[str, Any]] = {
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
_COMMON = {
    "model_type": "qwen2",
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
}
_MAKE = """
import json, sys
import mlx.core as mx, mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
folder, bits = sys.argv[1], int(sys.argv[2])
config = json.load(open(folder + "/config.json"))
mx.random.seed(0)
model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
model.apply(lambda x: x.astype(mx.bfloat16))
if bits:
    nn.quantize(model, 64, bits)
shard = {}
number = 0
for name, array in tree_flatten(model.parameters()):
    mx.eval(array)
    shard[name] = array
    if sum(a.nbytes for a in shard.values()) > 2e9:
        mx.save_safetensors(f"{folder}/model-{number:05d}.safetensors", shard)
        shard, number = {}, number + 1
mx.save_safetensors(f"{folder}/model-{number:05d}.safetensors", shard)
"""
_NATIVE = """
import json, sys, time
from pathlib import Path
import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
folder, count = sys.argv[1], int(sys.argv[2])
lengths = [int(n) for n in sys.argv[3].split(",")]
model, _ = load_model(Path(folder))
for length in [lengths[0], *lengths]:
    prompt = mx.array([(7 * n) % 1000 for n in range(length)])
    began = time.perf_counter()
    stamps = []
    for token, _ in generate_step(prompt, model, max_tokens=count, prefill_step_size=1024):
        stamps.append(time.perf_counter())
    # The first of these is for warming up; the last line of a length counts.
    steps = len(stamps) - 1
    print(json.dumps({"prompt_tokens": length, "first_token_seconds": stamps[0] - began,
                      "tokens_per_second": steps / (stamps[-1] - stamps[0]),
                      "ms_per_step": 1000 * (stamps[-1] - stamps[0]) / steps,
                      "peak_bytes": mx.get_peak_memory()}), flush=True)
"""


def write_model(shape: str, bits: int) -> Path:
    """Writes the model once; returns its folder."""
    folder = Path(tempfile.gettempdir()) / f"macmesh-bench-{shape}-{bits}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(exist_ok=True)
    config: dict[str, Any] = {**_COMMON, **_SHAPES[shape]}
    if bits:
        config["quantization"] = {"group_size": 64, "bits": bits}
    (folder / "config.json").write_text(json.dumps(config))
    subprocess.run([sys.executable, "-c", _MAKE, str(folder), str(bits)], check=True)
    (folder / "done").touch()
    return folder


def native(folder: Path, tokens: int, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """mlx-lm's figures, one for each length of prompt."""
    told = subprocess.run(
        [sys.executable, "-c", _NATIVE, str(folder), str(tokens), ",".join(map(str, lengths))],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [json.loads(line) for line in told[1:]]


class Plan:
    """Workers at work: takes requests and notes when each token came."""

    def __init__(self, workers: Sequence[Worker], epoch: Any) -> None:
        self.workers, self.epoch = workers, epoch
        self.stamps: dict[str, list[float]] = {}
        self.ended: dict[str, asyncio.Event] = {}
        self.progressed = asyncio.Condition()
        self.pongs: list[asyncio.Queue[lane_pb2.PongWorker]] = [asyncio.Queue() for _ in workers]

    async def listen(self, index: int) -> None:
        """Reads a worker's events until it ends."""
        async for event in self.workers[index].events():
            match event.WhichOneof("event"):
                case "progress":
                    self.stamps[event.progress.request_id].append(time.perf_counter())
                    async with self.progressed:
                        self.progressed.notify_all()
                    if event.progress.response.finish_reason != inference_pb2.FINISH_REASON_UNSPECIFIED:
                        self.ended[event.progress.request_id].set()
                case "failed":
                    raise SystemExit(f"{event.failed.reason}: {event.failed.message}")
                case "pong":
                    self.pongs[index].put_nowait(event.pong)

    async def submit(self, name: str, prompt_tokens: int, tokens: int, seed: int = 0) -> None:
        """Begins a request with a prompt of its own."""
        drawn = random.Random(f"{name}{seed}")  # noqa: S311  tokens, no secrets
        self.stamps[name], self.ended[name] = [], asyncio.Event()
        request = peer_pb2.RunRequestRequest(
            epoch=self.epoch,
            request_id=name,
            prompt_token_ids=[drawn.randrange(1000) for _ in range(prompt_tokens)],
            max_tokens=tokens,
        )
        await self.workers[0].send(lane_pb2.WorkerCommand(submit=lane_pb2.SubmitRequest(request=request)))

    async def run(self, name: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        """One request to its end."""
        began = time.perf_counter()
        await self.submit(name, prompt_tokens, tokens)
        await self.ended[name].wait()
        stamps = self.stamps[name]
        steps = max(1, len(stamps) - 1)
        return {
            "prompt_tokens": prompt_tokens,
            "first_token_seconds": stamps[0] - began,
            "tokens_per_second": steps / (stamps[-1] - stamps[0]) if len(stamps) > 1 else 0.0,
            "ms_per_step": 1000 * (stamps[-1] - stamps[0]) / steps,
        }

    async def times(self) -> list[dict[str, Any]]:
        """What every stage tells of its time so far."""
        found = []
        for index, worker in enumerate(self.workers):
            while not self.pongs[index].empty():
                self.pongs[index].get_nowait()
            await worker.send(lane_pb2.WorkerCommand(ping=lane_pb2.PingWorker(nonce=1 << 40)))
            found.append(MessageToDict(await self.pongs[index].get(), preserving_proto_field_name=True))
        return found


def split_ms(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Milliseconds per step that each stage spent in each phase, between two reports."""
    stages = []
    for old, new in zip(before, after, strict=True):
        steps = max(1, int(new.get("steps", 0)) - int(old.get("steps", 0)))
        phases = {}
        for name, value in new.get("times", {}).items():
            if isinstance(value, dict) and "seconds" in value:
                earlier = old.get("times", {}).get(name, {})
                spent = value["seconds"] - (earlier.get("seconds", 0.0) if isinstance(earlier, dict) else 0.0)
                phases[name] = round(1000 * spent / steps, 4)
        phases["peak_bytes"] = int(new.get("peak_memory_bytes", 0))
        stages.append(phases)
    return stages


def environment(index: int, gpus: int) -> dict[str, str]:
    """Of a stage's worker."""
    more = {"CUDA_VISIBLE_DEVICES": str(index % gpus)} if gpus else {}
    return {**os.environ, **more}


async def measure(folder: Path, stages: int, arguments: argparse.Namespace) -> None:
    """All measurements with so many stages."""
    layers = int(json.loads((folder / "config.json").read_text())["num_hidden_layers"])
    prefills = arguments.prefill if "prefill" in arguments.what else []
    starts = local_plan(
        [folder] * stages,
        even_cuts(layers, stages),
        layer_count=layers,
        context_tokens=max([arguments.prompt + arguments.tokens + 8, 6000, *(n + 8 for n in prefills)]),
        slots=8,
        step_deadline_seconds=120.0,
    )
    numbers = iter(range(stages))
    async with running_plan(
        starts, lambda: WorkerProcess(environment=environment(next(numbers), arguments.gpus))
    ) as workers:
        plan = Plan(workers, starts[0].epoch)
        async with asyncio.TaskGroup() as group:
            listeners = [
                group.create_task(plan.listen(index), name=f"stage{index}") for index in range(stages)
            ]
            try:
                async with asyncio.timeout(arguments.deadline):
                    await _measure(plan, stages, arguments, prefills)
            finally:
                for listener in listeners:
                    listener.cancel()


async def _measure(plan: Plan, stages: int, arguments: argparse.Namespace, prefills: list[int]) -> None:
    prompt, tokens = arguments.prompt, arguments.tokens
    await plan.run("warm", prompt, 16)
    before = await plan.times()
    if "decode" in arguments.what:
        one = await plan.run("one", prompt, tokens)
        tell("decode", stages, {**one, "split_ms": split_ms(before, await plan.times())})
    if "many" in arguments.what:
        for count in sorted({1, stages, 8}):
            began = time.perf_counter()
            for number in range(count):
                await plan.submit(f"many{count}.{number}", prompt, tokens)
            for number in range(count):
                await plan.ended[f"many{count}.{number}"].wait()
            series = [plan.stamps[f"many{count}.{number}"] for number in range(count)]
            # All decode together from the last first token to the first last token.
            start, end = max(s[0] for s in series), min(s[-1] for s in series)
            together = sum(sum(start < stamp <= end for stamp in s) for s in series)
            rate = together / (end - start) if end > start else 0.0
            wall = time.perf_counter() - began
            tell("many", stages, {"requests": count, "decode_tokens_per_second": rate, "wall_seconds": wall})
    for length in prefills:
        await plan.run(f"cold{length}", length, 1)
        told = await plan.run(f"prefill{length}", length, 1)
        tell("prefill", stages, {**told, "prompt_tokens_per_second": length / told["first_token_seconds"]})
    if "gap" in arguments.what:
        await plan.submit("stream", 64, 4 * tokens)
        async with plan.progressed:
            await plan.progressed.wait_for(lambda: len(plan.stamps["stream"]) >= tokens // 2)
        await plan.submit("long", 4000, 4)
        await plan.ended["long"].wait()
        upto = plan.stamps["long"][0]
        await plan.ended["stream"].wait()
        stamps = plan.stamps["stream"]
        gaps = sorted(b - a for a, b in itertools.pairwise(stamps) if b <= upto)
        tell("gap", stages, {"p50_ms": 1000 * gaps[len(gaps) // 2], "max_ms": 1000 * gaps[-1]})


def tell(what: str, stages: int, figures: dict[str, Any]) -> None:
    """One line of the output."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps({"what": what, "stages": stages, **rounded}), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="the engine beside mlx-lm on this machine")
    parser.add_argument("--shape", choices=sorted(_SHAPES), default="tiny")
    parser.add_argument("--bits", type=int, default=4, help="0: not quantised")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prefill", type=int, nargs="+", default=[8192])
    parser.add_argument("--what", default="native,decode,many,gap")
    parser.add_argument("--deadline", type=float, default=300.0, help="seconds for each number of stages")
    arguments = parser.parse_args()
    arguments.what = arguments.what.split(",")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {arguments.gpus} GPUs"
    print(json.dumps({"benchmark": "engine", "machine": machine, "shape": arguments.shape}), flush=True)
    folder = write_model(arguments.shape, arguments.bits)
    if "native" in arguments.what:
        lengths = [arguments.prompt, *(arguments.prefill if "prefill" in arguments.what else [])]
        for figures in native(folder, arguments.tokens, lengths):
            tell("native", 0, figures)
    for stages in arguments.stages:
        asyncio.run(measure(folder, stages, arguments))


if __name__ == "__main__":
    main()
