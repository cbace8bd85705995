"""How the ranks of a tensor-parallel plan sum up: a group of MLX with deadlines. Imports mlx."""

import abc
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from macmesh_rdma.errors import RemotePeerLostError
from macmesh_rdma.group import Group
from macmesh_rdma.stall import StallWatch

if TYPE_CHECKING:
    import mlx.core as mx


class Collectives(abc.ABC):
    """One rank's end of the group. To be used from the inference thread."""

    @property
    @abc.abstractmethod
    def group(self) -> "mx.distributed.Group":
        """For `mlx.core.distributed` and all that takes a group."""

    @abc.abstractmethod
    def guarded(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Is entered where the device may wait for another rank. Not to be nested.

        Each wait takes at most the step's deadline. After an error the group is of no use any more.

        Args:
            what: is waited for, for people.

        Raises:
            TransportError: by leaving it; a rank is lost, or did not do the same.
        """


class GroupCollectives(Collectives):
    """Over a group of our own, whose operations have the step's deadline.

    Args:
        group: of all ranks.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    @property
    def group(self) -> "mx.distributed.Group":
        """See `Collectives.group`."""
        return self._group.mlx

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """See `Collectives.guarded`."""
        try:
            yield
        except RuntimeError as error:
            if self._group.failure is None:
                raise  # of the device, not of the group
            self._group.raise_failure(RuntimeError(f"{what}: {error}"))


class StockCollectives(Collectives):
    """Over a group of MLX's own backend, whose waits cannot be ended: a watch ends the process.

    Args:
        name: of the backend.
        group: of all ranks.
        watch: ends the process where a wait takes too long.
        deadline_seconds: longest wait.
    """

    def __init__(
        self, name: str, group: "mx.distributed.Group", watch: StallWatch, deadline_seconds: float
    ) -> None:
        self.name = name
        self._group = group
        self._watch = watch
        self._deadline_seconds = deadline_seconds
        self.broken = ""
        """Why nothing can be summed up any more; empty while all is well."""

    @property
    def group(self) -> "mx.distributed.Group":
        """See `Collectives.group`."""
        return self._group

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """See `Collectives.guarded`."""
        try:
            with self._watch.limit(self._deadline_seconds, f"{self.name}: {what}"):
                yield
        except RuntimeError as error:
            self.broken = str(error)
            raise RemotePeerLostError(f"rank {self._group.rank()}, {self.name}: {what}: {error}") from error
