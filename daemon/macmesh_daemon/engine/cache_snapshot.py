"""What caches were before a step was described, so that a step described in vain can be taken back."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx

from macmesh_daemon.engine.batch_caches import BatchCaches
from macmesh_daemon.engine.cache_members import members
from macmesh_daemon.engine.caches import StageCaches
from macmesh_daemon.engine.errors import LocalStageError


class Snapshot:
    """State of one step's caches. To be dropped before the step is evaluated.

    It holds the arrays as they were, so that writing into them would copy them while it lives.
    """

    def __init__(self, caches: StageCaches | BatchCaches) -> None:
        self._caches = caches
        self._members: list[tuple[Any, dict[str, Any]]] = [
            (member, {name: _alias(value) for name, value in vars(member).items()})
            for entry in caches.entries
            for member in members(entry)
        ]
        self._restore_counts = _counts(caches)
        self._held = True

    def restore(self) -> None:
        """Takes the step back, and drops the snapshot.

        Raises:
            LocalStageError: it has been dropped.
        """
        if not self._held:
            raise LocalStageError("a snapshot of caches was used twice")
        for member, attributes in self._members:
            vars(member).clear()
            vars(member).update(attributes)
        self._restore_counts()
        self.drop()

    def drop(self) -> None:
        """Lets go of the arrays: the step is to be evaluated."""
        self._members, self._held = [], False


def _counts(caches: StageCaches | BatchCaches) -> Callable[[], None]:
    if isinstance(caches, StageCaches):
        length = caches.length

        def restore_single() -> None:
            caches.length = length

        return restore_single
    lengths, end = list(caches.lengths), caches.end
    positions = dataclasses.replace(caches.positions)

    def restore_batch() -> None:
        caches.lengths, caches.end = lengths, end
        caches.positions.before, caches.positions.after = positions.before, positions.after

    return restore_batch


def _alias(value: Any) -> Any:
    # What is written into an array object later does not reach an alias of it.
    if isinstance(value, mx.array):
        return value[...]
    if isinstance(value, (list, tuple)):
        return type(value)(_aliases(value))
    return value


def _aliases(values: Iterable[Any]) -> Iterable[Any]:
    return (_alias(value) for value in values)
