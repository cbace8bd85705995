"""Which tensors of the files the parts of a model are computed from.

What mlx-lm loads is lazy: each parameter is a graph whose leaves are the tensors of the files, whatever the
model's ``sanitize`` renames, stacks, splits or dequantises on the way. So nothing has to be known of names.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from macmesh_daemon.engine.anatomy import Anatomy, modules_by_path, own_parameters
from macmesh_daemon.engine.caches import arrays_of
from macmesh_daemon.engine.errors import LocalModelFilesError
from macmesh_daemon.engine.stand_ins import replaced
from macmesh_daemon.models.errors import LocalModelFolderError
from macmesh_daemon.models.folder import read_folder
from macmesh_daemon.weights.errors import LocalWeightsError
from macmesh_daemon.weights.partial import require_held
from macmesh_daemon.weights.tensor_map import TensorMap

_EDGE = re.compile(r'^("[^"]*"|\d+) -> ("[^"]*"|\d+)$')
_TENSOR, _WANTED = "t", "w"


@dataclass(slots=True)
class Loaded:
    """What was loaded from files: the arrays as they came, and their names there."""

    names: list[str] = field(default_factory=list)
    arrays: list[mx.array] = field(default_factory=list)

    def clear(self) -> None:
        """Let go of the arrays."""
        self.names.clear()
        self.arrays.clear()


@contextmanager
def noted_loads() -> Iterator[Loaded]:
    """While active, notes what ``mx.load`` gives out of files of tensors."""
    loaded = Loaded()
    original: Callable[..., Any] = mx.load

    def load(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if isinstance(result, dict):
            loaded.names.extend(result.keys())
            loaded.arrays.extend(result.values())
        return result

    with replaced(mx, "load", load):
        yield loaded


def sources_of(loaded: Loaded, groups: Sequence[Iterable[mx.array]]) -> list[frozenset[str]]:
    """For each group of arrays, the names of the tensors that must be read to compute it. Computes nothing.

    Args:
        loaded: What was loaded; none of it evaluated yet.
        groups: Arrays made of it.
    """
    wanted: dict[str, int] = {}
    named: dict[str, mx.array] = {f"{_TENSOR}{n}": array for n, array in enumerate(loaded.arrays)}
    for index, group in enumerate(groups):
        for array in group:
            name = f"{_WANTED}{len(wanted)}"
            wanted[name] = index
            # A parameter may be a tensor as it is: only an array of its own keeps both names apart.
            named[name] = mx.expand_dims(array, 0)
    text = io.StringIO()
    mx.export_to_dot(text, **named)
    inputs = _inputs(text.getvalue())
    found: list[set[str]] = [set() for _ in groups]
    for name, index in wanted.items():
        found[index] |= _leaves(f'"{name}"', inputs)
    return [
        frozenset(loaded.names[int(leaf[len(_TENSOR) :])] for leaf in leaves if leaf.startswith(_TENSOR))
        for leaves in found
    ]


def _inputs(dot: str) -> dict[str, list[str]]:
    """What each node of the graph is made of."""
    inputs: dict[str, list[str]] = {}
    for line in dot.splitlines():
        if edge := _EDGE.match(line.strip()):
            inputs.setdefault(edge[2], []).append(edge[1])
    return inputs


def _leaves(node: str, inputs: dict[str, list[str]]) -> set[str]:
    seen, stack = {node}, [node]
    while stack:
        for source in inputs.get(stack.pop(), ()):
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return {name.strip('"') for name in seen if name.startswith('"')}


def tensor_map(model: Module, anatomy: Anatomy, loaded: Loaded) -> TensorMap:
    """The map of a whole model, lazily built of what was loaded.

    Args:
        model: The model.
        anatomy: What `examine` says of it.
        loaded: What `noted_loads` saw while it was built.
    """
    layers: Any = model.layers
    modules = modules_by_path(model)

    def outside(paths: Iterable[str]) -> list[mx.array]:
        return [array for path in paths for array in own_parameters(modules[path]).values()]

    groups = [
        *(arrays_of(layer.parameters()) for layer in layers),
        outside(anatomy.head_modules),
        outside(anatomy.tail_modules),
        outside(anatomy.shared_modules),
    ]
    *of_layers, head, tail, every = sources_of(loaded, groups)
    return TensorMap(layers=tuple(of_layers), head=head, tail=tail, every=every)


def require_tensors(folder: Path, loaded: Loaded, arrays: Iterable[mx.array]) -> None:
    """Let the arrays of a partial model be read where none of the bytes that they are made of is a hole.

    Raises:
        LocalModelFilesError: Some are; nothing was read.
    """
    [names] = sources_of(loaded, [arrays])
    try:
        require_held(folder, read_folder(folder).tensors, names)
    except (LocalWeightsError, LocalModelFolderError) as problem:
        raise LocalModelFilesError(str(problem)) from problem
