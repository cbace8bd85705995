"""Finds out which parameters and caches belong to which part of a model, by running it once lazily.

MLX computes nothing until a result is evaluated, so a forward pass of a lazily loaded model reads no
weights. It shows which modules outside the layers are used before the first layer (the head needs them), which
after the last one (the tail needs them), and which caches every layer is called with. No architecture is known
by name; what cannot be seen this way is for `macmesh_daemon.engine.adapters`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import make_prompt_cache

from macmesh_daemon.engine.adapters import adapter_of
from macmesh_daemon.engine.errors import LocalUnsplittableError
from macmesh_daemon.engine.handover import Outline, arrays_in, outline

TRACE_TOKENS = 2
"""Two make a prompt; recurrent layers unroll every token in Python, so not more."""


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What a stage must know of a model."""

    architecture: str
    """Name of the mlx-lm module that implements it."""
    layer_count: int
    layer_caches: tuple[tuple[int, ...], ...]
    """For each layer the indices, in the list of caches, of those that it is called with."""
    head_modules: frozenset[str]
    """Paths of the modules outside the layers that the head needs."""
    tail_modules: frozenset[str]
    """Paths of the modules outside the layers that the tail needs."""
    shared_modules: frozenset[str]
    """Paths of the modules outside the layers that every stage needs; the two above contain them too."""
    vocab_size: int
    """Logits of one token."""
    cut_points: tuple[int, ...]
    """Layers before which the model may be cut, ascending."""
    cut_reason: str
    """Why not everywhere; empty where every boundary is allowed."""
    outlines: tuple[Outline, ...]
    """For each layer but the last, what it hands to the next."""

    @property
    def split_refusal(self) -> str:
        """Why the model cannot be cut at all; empty where it can."""
        return "" if self.cut_points else self.cut_reason


def examine(model: Module) -> Anatomy:
    """Runs the model once without computing anything; the model is left as it was."""
    layers = list(model.layers)
    trace = _Trace(model, layers)
    caches = make_prompt_cache(model)
    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.enter_context(trace.layer(index, layer, caches))
        for path, module in trace.outer.items():
            stack.enter_context(trace.module(path, module))
        logits: mx.array = model(mx.zeros((1, TRACE_TOKENS), mx.int32), cache=caches)
    architecture = type(model).__module__.rpartition(".")[2]
    cuts, reason = trace.cut_points(model)
    # What was not used in this step may be used in another one, at any time.
    shared = trace.between | (trace.outer.keys() - trace.before - trace.after)
    return Anatomy(
        architecture=architecture,
        layer_count=len(layers),
        layer_caches=tuple(tuple(indices) for indices in trace.caches),
        head_modules=frozenset(trace.before | shared),
        tail_modules=frozenset(trace.after | shared),
        shared_modules=frozenset(shared),
        vocab_size=logits.shape[-1],
        cut_points=cuts,
        cut_reason=reason,
        outlines=tuple(trace.handed_on[index] for index in sorted(trace.handed_on)),
    )


class _Trace:
    def __init__(self, model: Module, layers: list[Module]) -> None:
        self.outer = _modules_outside(model, layers)
        self.calls = [0] * len(layers)
        self.caches: list[list[int]] = [[] for _ in layers]
        self.before: set[str] = set()
        self.between: set[str] = set()
        self.after: set[str] = set()
        self.handed_on: dict[int, Outline] = {}
        self.returned: Any = None

    @contextlib.contextmanager
    def layer(self, index: int, layer: Module, caches: list[Any]) -> Iterator[None]:
        numbers = {id(cache): number for number, cache in enumerate(caches)}

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self.calls[index] += 1
            found = [numbers[id(value)] for value in (*args, *kwargs.values()) if id(value) in numbers]
            self.caches[index].extend(found)
            if index:
                # Now, as the layer may change what it gets.
                given = (value for value in (*args, *kwargs.values()) if id(value) not in numbers)
                taken = {id(array) for value in given for array in arrays_in(value)}
                self.handed_on[index - 1] = outline(self.returned, taken)
            out = original(*args, **kwargs)
            self.returned = out
            return out

        with swapped(layer, {"__call__": call}):
            yield

    @contextlib.contextmanager
    def module(self, path: str, module: Module) -> Iterator[None]:
        """Notes when the module's own parameters are read, by itself or by the model around it."""
        own = set(own_parameters(module))

        def read(original: Callable[..., Any], key: str) -> Any:
            if key in own:
                self._use(path)
            return original(key)

        with swapped(module, {"__getattr__": read, "__getitem__": read}):
            yield

    def _use(self, path: str) -> None:
        if not any(self.calls):
            self.before.add(path)
        elif all(self.calls):
            self.after.add(path)
        else:
            self.between.add(path)

    def cut_points(self, model: Module) -> tuple[tuple[int, ...], str]:
        if counts := sorted({count for count in self.calls if count != 1}):
            return (), adapter_of(
                model
            ).refusal or f"its layers are called {counts[0]} times in one step, not once"
        if self.between:
            return (), f"it runs {', '.join(sorted(self.between)[:3])} between its layers"
        return adapter_of(model).cut_points(len(self.calls))


def modules_by_path(module: Any) -> dict[str, Module]:
    """A module and all below it, by path."""
    return dict(module.named_modules())


def own_parameters(module: Any) -> dict[str, mx.array]:
    """The parameters that a module itself holds, by name; buffers, whose names start with "_", are none."""
    return {
        name: value
        for name, value in module.items()
        if isinstance(value, mx.array) and not name.startswith("_")
    }


def require_cut(anatomy: Anatomy, layer: int) -> None:
    """Lets a cut before that layer pass.

    Raises:
        LocalUnsplittableError: the model cannot be cut there; the message says why and what to do.
    """
    if layer in anatomy.cut_points:
        return
    if not anatomy.cut_points:
        raise LocalUnsplittableError(
            f"{anatomy.architecture} cannot be cut into stages: {anatomy.cut_reason}; "
            "load it with one stage, on a node that holds all of it"
        )
    raise LocalUnsplittableError(
        f"{anatomy.architecture} cannot be cut before layer {layer}: {anatomy.cut_reason}; "
        f"cut it before one of {', '.join(map(str, anatomy.cut_points))}"
    )


@contextlib.contextmanager
def swapped(module: Module, methods: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Routes methods of one module through functions that get the original first."""
    original_class = type(module)
    swap_methods(module, methods)
    try:
        yield
    finally:
        module.__class__ = original_class


def swap_methods(module: Module, methods: dict[str, Callable[..., Any]]) -> None:
    """Routes methods of one module through functions that get the original first, for good.

    Only the class of this object is swapped, for a subclass: all else that the model reads from it still
    answers.
    """
    original_class = type(module)

    def routed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        method = getattr(original_class, name)

        def call(self: Module, *args: Any, **kwargs: Any) -> Any:
            return function(lambda *a, **k: method(self, *a, **k), *args, **kwargs)

        return call

    body = {name: routed(name, function) for name, function in methods.items()}
    module.__class__ = type(original_class.__name__, (original_class,), body)


def _modules_outside(model: Module, layers: list[Module]) -> dict[str, Module]:
    """Modules with parameters of their own that are in no layer, by path."""
    every = modules_by_path(model)
    of_layers = {id(layer) for layer in layers}
    below = tuple(f"{path}." for path, module in every.items() if id(module) in of_layers)
    inside = of_layers | {id(module) for path, module in every.items() if path.startswith(below)}
    return {
        path: module for path, module in every.items() if id(module) not in inside and own_parameters(module)
    }
