"""What one layer hands to the next: the arrays that cross a cut, and the shape of the rest around them."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from macmesh_daemon.engine.errors import LocalStageError


@dataclasses.dataclass(frozen=True)
class ArrayFacts:
    """An array that crosses a cut, before it is there."""

    shape: tuple[int, ...]
    dtype: str
    """As mlx names it, ``bfloat16``."""


def dtype_name(dtype: mx.Dtype) -> str:
    """The name in `mlx.core`: ``bfloat16`` of ``mlx.core.bfloat16``."""
    name = str(dtype).rpartition(".")[2]
    return "bool_" if name == "bool" else name


@dataclasses.dataclass(frozen=True)
class _Place:
    """Stands for an array that crosses, by its number among those."""

    number: int


@dataclasses.dataclass(frozen=True)
class _Object:
    """Stands for an object of the model's own, as a layer may return one."""

    kind: type
    attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a layer returns, without its arrays. Holds none, so that nothing is kept alive by it."""

    tree: Any
    crosses: tuple[bool, ...]
    """For each array in the order of `arrays_in`, whether the next layer gets it."""

    @property
    def count(self) -> int:
        """Arrays that cross."""
        return sum(self.crosses)

    def arrays(self, returned: Any) -> list[mx.array]:
        """The arrays of a layer's return value that cross.

        Raises:
            LocalStageError: the value is made differently than the one that was traced.
        """
        found = list(arrays_in(returned))
        if len(found) != len(self.crosses):
            raise LocalStageError(
                f"a layer returned {len(found)} arrays where the traced step had {len(self.crosses)}"
            )
        return [array for array, crosses in zip(found, self.crosses, strict=True) if crosses]

    def filled(self, arrays: list[mx.array]) -> Any:
        """A return value with these arrays in it, made anew; in place of those that do not cross stands None.

        The arrays are aliases: models assign to slices of what a layer returned.
        """
        return _filled(self.tree, arrays)


def outline(returned: Any, taken: set[int]) -> Outline:
    """The outline of a layer's return value.

    Args:
        returned: the value. Its first array is the hidden state, which always crosses.
        taken: ids of the arrays that the next layer was called with.
    """
    crosses = tuple(index == 0 or id(array) in taken for index, array in enumerate(arrays_in(returned)))
    numbers = itertools.count()
    places = iter([_Place(next(numbers)) if does else None for does in crosses])
    return Outline(_emptied(returned, places), crosses)


def arrays_in(value: Any) -> Iterator[mx.array]:
    """All arrays of a value, those of objects of the model's own too, in a fixed order."""
    if isinstance(value, mx.array):
        yield value
        return
    for child in _children(value).values():
        yield from arrays_in(child)


def _children(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    return vars(value) if _is_object(value) else {}


def _is_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value)


def _emptied(value: Any, places: Iterator[_Place | None]) -> Any:
    if isinstance(value, mx.array):
        return next(places)
    children = {key: _emptied(child, places) for key, child in _children(value).items()}
    if isinstance(value, dict):
        return children
    if isinstance(value, list | tuple):
        return type(value)(children.values())
    return _Object(type(value), children) if _is_object(value) else value


def _filled(tree: Any, arrays: list[mx.array]) -> Any:
    if isinstance(tree, _Place):
        return arrays[tree.number][...]
    if isinstance(tree, _Object):
        made: Any = object.__new__(tree.kind)
        vars(made).update({name: _filled(child, arrays) for name, child in tree.attributes.items()})
        return made
    if isinstance(tree, dict):
        return {key: _filled(child, arrays) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_filled(child, arrays) for child in tree)
    return tree
