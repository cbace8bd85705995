"""The seam between a stage and what an architecture needs beyond the generic way."""

import dataclasses
from typing import Any, Protocol

import mlx.core as mx


class Extras(Protocol):
    """What crosses a cut beside what a layer returns."""

    def note(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a layer behind the stage would need of what it is called with."""

    def pack(self, cut: int, notes: list[Any]) -> list[mx.array]:
        """The arrays to hand on.

        Args:
            cut: the first layer behind the stage.
            notes: of that layer and all after it.
        """

    def give(
        self, index: int, cut: int, arrays: list[mx.array], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a layer is called with, where the stage before has sent a part of it.

        Args:
            index: the layer; ``cut`` or later.
            cut: the first layer of this stage.
            arrays: as `pack` made them.
            args: what the model calls it with.
            kwargs: as ``args``.
        """

    def depends_on_history(self, cut: int) -> bool:
        """Whether the shapes follow from more than the size of the step."""

    def bytes_per_token(self, cut: int, traced_bytes: int) -> int:
        """Most bytes of one token.

        Args:
            cut: the first layer behind the stage.
            traced_bytes: of one token in a traced step with an empty past.
        """


class Nothing:
    """No extras."""

    def note(self, _index: int, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        """Nothing."""

    def pack(self, _cut: int, _notes: list[Any]) -> list[mx.array]:
        """Nothing."""
        return []

    def give(
        self, _index: int, _cut: int, _arrays: list[mx.array], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model calls it with."""
        return args, kwargs

    def depends_on_history(self, _cut: int) -> bool:
        """Never."""
        return False

    def bytes_per_token(self, _cut: int, traced_bytes: int) -> int:
        """As traced."""
        return traced_bytes


@dataclasses.dataclass(frozen=True)
class Limit:
    """Where a model may be cut."""

    allowed: frozenset[int]
    """Layers before which it may be cut."""
    reason: str
    """Why not before the others."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One architecture's exceptions; the default has none."""

    refusal: str = ""
    """Why it cannot be cut at all."""
    limit: Limit | None = None
    extras: Extras = dataclasses.field(default_factory=Nothing)

    def cut_points(self, layer_count: int) -> tuple[tuple[int, ...], str]:
        """The layers before which the model may be cut, ascending, and why not everywhere."""
        if self.refusal:
            return (), self.refusal
        every = tuple(range(1, layer_count))
        if self.limit is None or self.limit.allowed.issuperset(every):
            return every, ""
        return tuple(cut for cut in every if cut in self.limit.allowed), self.limit.reason
