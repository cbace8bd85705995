"""Two stages on two CUDA GPUs of one host whose kernels wait for each other: what a step costs beside one process.

    python bench/device_wait.py [--shape 7b|32b] [--steps N]

A study for the engine, not its path yet. Host transfers evaluate each step before they hand it on, so the device is
idle while the host encodes. Here a step is encoded one ahead: its first kernel waits on the GPU until a counter in
shared, pinned memory says that the other stage's output is there, and its last kernel writes the output and the
counter. The host only keeps at most two steps queued. Prints JSON: milliseconds per step of one process (`ahead`, `each
evaluated`) and of each stage. Every wait in a kernel ends by itself after some seconds.
"""

import argparse
import ctypes
import importlib.util
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np

_SIZES = {
    "7b": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "32b": {
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "intermediate_size": 27_648,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
}
_PROMPT = 512
_WARM_STEPS = 20
_BLOCK = 256
#: Bytes from the start of the shared memory: counters of steps (hidden states, ids), readiness, two buffers of each.
_HIDDEN_FLAG, _IDS_FLAG, _READY = 0, 64, 1024
_HIDDEN, _IDS = (4096, 20_480), (65_536, 69_632)
_MEMORY_BYTES = 1 << 17
_WAIT = """
volatile long long* flag = (volatile long long*)(unsigned long long)ptrs[0];
const int4* source = (const int4*)(unsigned long long)ptrs[1];
if (threadIdx.x == 0) {
  long long began = clock64();
  while (*flag < step[0] && clock64() - began < 4000000000LL) __nanosleep(50);
  __threadfence_system();
}
__syncthreads();
for (int k = threadIdx.x; k < COUNT; k += blockDim.x) ((int4*)out)[k] = __ldcv(source + k);
"""
_SEND = """
volatile long long* flag = (volatile long long*)(unsigned long long)ptrs[0];
int4* target = (int4*)(unsigned long long)ptrs[1];
for (int k = threadIdx.x; k < COUNT; k += blockDim.x) target[k] = ((const int4*)inp)[k];
__threadfence_system();
__syncthreads();
if (threadIdx.x == 0) { *flag = step[0]; __threadfence_system(); done[0] = step[0]; }
"""


class Part:
    """Some layers of a model of random weights, with caches that hold a prompt."""

    def __init__(self, shape: str, first: int, end: int) -> None:
        import mlx.core as mx  # noqa: PLC0415  after the choice of the GPU
        from mlx import nn  # noqa: PLC0415  same
        from mlx_lm.models import qwen2  # noqa: PLC0415  same
        from mlx_lm.models.cache import KVCache  # noqa: PLC0415  same

        self.mx: Any = mx
        sizes: dict[str, Any] = {**_SIZES[shape]}
        arguments: Any = qwen2.ModelArgs(
            model_type="qwen2",
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            tie_word_embeddings=False,
            vocab_size=152_064,
            **sizes,
        )
        self.hidden = sizes["hidden_size"]
        self.model: Any = qwen2.Model(arguments)
        self.model.model.layers = self.model.model.layers[first:end]
        self.model.apply(lambda array: array.astype(mx.float16))
        nn.quantize(self.model, 64, 4)  # type: ignore[attr-defined]  # the stub omits it
        mx.eval(self.model.parameters())
        self.caches = [KVCache() for _ in self.model.model.layers]  # type: ignore[no-untyped-call]
        for cache in self.caches:
            cache.step = 4096
        mx.eval(self.layers(mx.zeros((1, _PROMPT, self.hidden), mx.float16)))

    def layers(self, hidden: Any) -> Any:
        """The layers' output."""
        mask = None if hidden.shape[1] == 1 else "causal"
        for layer, cache in zip(self.model.model.layers, self.caches, strict=True):
            hidden = layer(hidden, mask, cache)
        return hidden

    def token(self, hidden: Any) -> Any:
        """The most probable token after the last layer."""
        logits = self.model.lm_head(self.model.model.norm(hidden))[:, -1, :]
        return self.mx.argmax(logits, axis=-1).astype(self.mx.int32)


def alone(shape: str, steps: int, answers: Any) -> None:
    """One process."""
    part = Part(shape, 0, _SIZES[shape]["num_hidden_layers"])
    mx = part.mx

    def step(token: Any) -> Any:
        return part.token(part.layers(part.model.model.embed_tokens(token[None])))

    told: dict[str, float] = {}
    for name in ("ahead", "each evaluated"):
        token, spent = step(mx.zeros((1,), mx.int32)), []
        mx.async_eval(token)
        for _ in range(steps):
            began = time.perf_counter()
            if name == "ahead":
                following = step(token)
                mx.async_eval(following)
                token.item()
                token = following
            else:
                token = step(token)
                mx.eval(token)
            spent.append(time.perf_counter() - began)
        told[name] = 1000 * statistics.median(spent[_WARM_STEPS:])
    answers.put({"stage": "alone", **told})


def _cuda_runtimes() -> Iterator[Path]:
    """The CUDA runtime of NVIDIA's packages, which MLX uses too."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from sorted(Path(folder).rglob("libcudart.so*"))


def _bytes_of(memory: shared_memory.SharedMemory) -> memoryview:
    if memory.buf is None:
        raise SystemExit("the shared memory is closed")
    return memory.buf


def _pinned(memory: shared_memory.SharedMemory) -> int:
    """Address of the shared memory for kernels."""
    runtime = ctypes.CDLL(next((str(path) for path in _cuda_runtimes()), "libcudart.so"))
    start = ctypes.addressof(ctypes.c_char.from_buffer(_bytes_of(memory)))
    address = ctypes.c_void_p()
    failed = runtime.cudaHostRegister(ctypes.c_void_p(start), ctypes.c_size_t(memory.size), 3)
    failed = failed or runtime.cudaHostGetDevicePointer(ctypes.byref(address), ctypes.c_void_p(start), 0)
    if failed or address.value is None:
        raise SystemExit(f"the shared memory cannot be pinned: CUDA says {failed}")
    return address.value


def stage(rank: int, shape: str, steps: int, name: str, answers: Any) -> None:
    """One of two."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
    count = _SIZES[shape]["num_hidden_layers"]
    part = Part(shape, *((0, count // 2) if rank == 0 else (count // 2, count)))
    mx, memory = part.mx, shared_memory.SharedMemory(name)
    address, words = _pinned(memory), np.ndarray((512,), np.int64, memory.buf)
    own: dict[str, Any] = {"grid": (_BLOCK, 1, 1), "threadgroup": (_BLOCK, 1, 1)}
    lanes = {True: part.hidden * 2 // 16, False: 1}

    def kernel(source: str, is_hidden: bool, inputs: list[str], output: str) -> Any:
        text = source.replace("COUNT", str(lanes[is_hidden]))
        return mx.fast.cuda_kernel(f"{output}_{int(is_hidden)}", inputs, [output], text)

    hidden_side = rank == 1
    wait = kernel(_WAIT, hidden_side, ["ptrs", "step"], "out")
    send = kernel(_SEND, not hidden_side, ["inp", "ptrs", "step"], "done")

    def pointers(flag: int, buffers: tuple[int, int]) -> list[Any]:
        return [mx.array(np.array([address + flag, address + buffer], np.uint64)) for buffer in buffers]

    comes = pointers(_HIDDEN_FLAG, _HIDDEN) if hidden_side else pointers(_IDS_FLAG, _IDS)
    goes = pointers(_IDS_FLAG, _IDS) if hidden_side else pointers(_HIDDEN_FLAG, _HIDDEN)

    def described(number: int) -> Any:
        wanted = number if hidden_side else number - 1
        facts: dict[str, Any] = {"output_shapes": [(4,)], "output_dtypes": [mx.int32]}
        if hidden_side:
            facts = {"output_shapes": [(1, 1, part.hidden)], "output_dtypes": [mx.float16]}
        inputs = [comes[wanted % 2], mx.array(np.array([wanted], np.int64))]
        taken = wait(inputs=inputs, **facts, **own)[0]
        if hidden_side:
            given = mx.concatenate([part.token(part.layers(taken))] * 4)
        else:
            given = part.layers(part.model.model.embed_tokens(taken[:1][None]))
        told: dict[str, Any] = {"output_shapes": [(1,)], "output_dtypes": [mx.int64]}
        inputs = [given, goes[number % 2], mx.array(np.array([number], np.int64))]
        return send(inputs=inputs, **told, **own)[0]

    words[_READY // 8 + rank] = 1
    while not (words[_READY // 8] and words[_READY // 8 + 1]):
        pass
    kept: list[Any] = []
    spent, last = [], time.perf_counter()
    for number in range(1, steps + 1):
        kept = [*kept[-2:], described(number)]
        mx.async_eval(kept[-1])
        limit = time.perf_counter() + 60
        while words[_IDS_FLAG // 8] < number - 1 and time.perf_counter() < limit:
            pass
        spent.append(time.perf_counter() - last)
        last += spent[-1]
    mx.eval(kept)
    answers.put({"stage": rank, "ms_per_step": 1000 * statistics.median(spent[_WARM_STEPS:])})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="stages whose kernels wait for each other")
    parser.add_argument("--shape", choices=sorted(_SIZES), default="7b")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    memory = shared_memory.SharedMemory(create=True, size=_MEMORY_BYTES)
    _bytes_of(memory)[:] = bytes(_MEMORY_BYTES)
    jobs = [
        [context.Process(target=alone, args=(arguments.shape, arguments.steps, answers))],
        [
            context.Process(target=stage, args=(rank, arguments.shape, arguments.steps, memory.name, answers))
            for rank in (0, 1)
        ],
    ]
    try:
        for job in jobs:
            for process in job:
                process.start()
            for _ in job:
                print(json.dumps(answers.get(timeout=180)), flush=True)
            for process in job:
                process.join(20)
    finally:
        for process in (process for job in jobs for process in job if process.is_alive()):
            process.kill()
        memory.unlink()


if __name__ == "__main__":
    main()
