"""Arrays that every rank makes for itself from a description, and what NumPy makes of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np

_INTEGERS = [f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64)]
_FLOATS = ["float16", "float32", "float64", "bfloat16", "complex64"]
MLX_DTYPES = {"bool": mx.bool_} | {name: getattr(mx, name) for name in [*_INTEGERS, *_FLOATS]}


@dataclasses.dataclass(frozen=True)
class Spec:
    """An array: its type, shape, the seed of its values, and how it lies in memory."""

    dtype: str
    shape: tuple[int, ...]
    seed: int
    layout: str = "plain"  # or "transposed", "sliced", "reversed", "broadcast"


def _numbers(spec: Spec, rank: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng([spec.seed, rank])
    shape = spec.shape if spec.layout != "broadcast" else spec.shape[1:]
    if spec.dtype == "bool":
        return random.integers(0, 2, shape).astype(np.bool_)
    if spec.dtype.startswith(("int", "uint")):
        info = np.iinfo(spec.dtype)
        return random.integers(info.min, info.max, shape, dtype=spec.dtype, endpoint=True)
    if spec.dtype == "complex64":
        return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)
    return random.normal(size=shape).astype(np.float64 if spec.dtype == "float64" else np.float32)


def _plain(spec: Spec, rank: int) -> mx.array:
    x = mx.array(_numbers(spec, rank), MLX_DTYPES[spec.dtype])
    return mx.broadcast_to(x, spec.shape) if spec.layout == "broadcast" else x


def input_of(spec: Spec, rank: int) -> mx.array:
    """The array of a rank, laid out as described: a view of evaluated memory where it is not plain."""
    x = _plain(spec, rank)
    if spec.layout == "transposed":
        base = mx.contiguous(x.T)
        mx.eval(base)
        return base.T
    if spec.layout == "sliced" and x.ndim > 0:
        base = mx.concatenate([x, x], axis=-1)
        mx.eval(base)
        return base[..., : x.shape[-1]]
    if spec.layout == "reversed" and x.ndim > 0:
        base = x[::-1]
        mx.eval(base)
        return base[::-1]
    return x


def bits(x: mx.array) -> tuple[str, tuple[int, ...], bytes]:
    """An array's type, shape and bytes."""
    name = str(x.dtype).removeprefix("mlx.core.")
    if name == "bfloat16":
        return name, tuple(x.shape), np.array(x.view(mx.uint16)).tobytes()
    return name.removesuffix("_"), tuple(x.shape), np.array(x).tobytes()


def _wide(spec: Spec, size: int) -> list[np.ndarray[Any, Any]]:
    """Every rank's numbers as NumPy has them; 16-bit floats as float32, which holds them exactly."""
    arrays = [_plain(spec, rank) for rank in range(size)]
    if spec.dtype in {"float16", "bfloat16"}:
        arrays = [x.astype(mx.float32) for x in arrays]
    return [np.array(x) for x in arrays]


def expected(operation: str, spec: Spec, size: int, rank: int) -> tuple[str, tuple[int, ...], bytes]:
    """What NumPy makes of all ranks' arrays, added in the order of ranks and rounded once."""
    arrays = _wide(spec, size)
    if operation == "all_gather":
        result = np.concatenate([np.atleast_1d(x) for x in arrays])
    else:
        step = {"all_max": np.maximum, "all_min": np.minimum}.get(operation, np.add)
        result = arrays[0]
        for x in arrays[1:]:
            result = step(result, x)
        if operation == "sum_scatter":
            rows = spec.shape[0] // size
            result = result[rank * rows : (rank + 1) * rows]
    return bits(mx.array(result, MLX_DTYPES[spec.dtype]))
