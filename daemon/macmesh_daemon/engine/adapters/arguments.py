"""Layers that read something made of the token embedding: it is sent, so that no later stage needs the tables."""

from typing import Any

import mlx.core as mx

from macmesh_daemon.engine.adapters.base import Nothing


class _Argument(Nothing):
    """An argument of the layers that only the head can make.

    Args:
        name: of the parameter.
        position: among those that a layer is called with, where it is not called by name.
    """

    def __init__(self, name: str, position: int) -> None:
        self._name = name
        self._position = position

    def note(self, _index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return kwargs[self._name] if self._name in kwargs else args[self._position]

    def _replaced(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], value: mx.array
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._name in kwargs:
            return args, {**kwargs, self._name: value}
        at = self._position
        return (*args[:at], value, *args[at + 1 :]), kwargs


class OneForAll(_Argument):
    """All layers get the same."""

    def pack(self, _cut: int, notes: list[Any]) -> list[mx.array]:
        """The argument."""
        return [notes[0]]

    def give(
        self, _index: int, _cut: int, arrays: list[mx.array], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """With what was sent."""
        return self._replaced(args, kwargs, arrays[0])


class EachLayersOwn(_Argument):
    """Every layer gets its own; those of all later layers are sent as one array, layers first."""

    def pack(self, _cut: int, notes: list[Any]) -> list[mx.array]:
        """The arguments of all later layers."""
        return [mx.stack(notes)]

    def give(
        self, index: int, cut: int, arrays: list[mx.array], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """With the layer's own."""
        return self._replaced(args, kwargs, arrays[0][index - cut])
