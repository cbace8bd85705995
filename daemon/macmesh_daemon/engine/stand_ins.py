"""Lets every architecture build and take lazy steps on any machine.

Two things stand in the way of shapes: a Metal kernel refuses to be described where there is no Metal, and a
module may want a package to be installed that it never uses. Both are replaced for as long as shapes are read.
"""

import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import mlx.core as mx

#: Packages that an architecture's module imports only to see that they are there.
IMPORT_PROBES = {"olmo": "hf_olmo"}

#: Architectures that cannot be profiled, with the reason. Every other one of the pinned mlx-lm can be.
UNPROFILED = {
    "olmo": "mlx-lm adds the name of the mask to the scores of a prompt, so that no prompt can be run",
}

#: Type of mlx's own functions.
_NATIVE = type(mx.fast.metal_kernel)


@contextmanager
def importable(model_type: str) -> Iterator[None]:
    """While active, the packages that the architecture only probes for can be imported."""
    probe = IMPORT_PROBES.get(model_type)
    if probe is None or probe in sys.modules:
        yield
        return
    sys.modules[probe] = types.ModuleType(probe)
    try:
        yield
    finally:
        del sys.modules[probe]


@contextmanager
def kernels_replaced() -> Iterator[None]:
    """While active, a call of a Metal kernel yields zeros of the shapes and dtypes that the call asks for."""
    with ExitStack() as stack:
        stack.enter_context(replaced(mx.fast, "metal_kernel", lambda *_args, **_kwargs: _outputs))
        for name, module in list(sys.modules.items()):
            if not name.startswith("mlx_lm."):
                continue
            for attribute, value in list(vars(module).items()):
                if _is_kernel(value):
                    stack.enter_context(replaced(module, attribute, _outputs))
        yield


@contextmanager
def uncompiled() -> Iterator[None]:
    """While active, functions under ``mx.compile`` run operation by operation, as they were written."""
    if not _compiles():
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def _compiles() -> bool:
    calls = 0

    def double(x: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        return x + x

    compiled = mx.compile(double)
    for _ in range(2):
        compiled(mx.zeros(1))
    return calls == 1  # mlx does not tell its setting; what is compiled is called once for each shape


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an attribute another value for a while."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _outputs(
    *, output_shapes: Sequence[Sequence[int]], output_dtypes: Sequence[mx.Dtype], **_kwargs: Any
) -> list[mx.array]:
    return [mx.zeros(tuple(shape), dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]


def _is_kernel(value: object) -> bool:
    # Functions of mlx have a name; the callable that `metal_kernel` returns has none.
    return type(value) is _NATIVE and not getattr(value, "__name__", None)
