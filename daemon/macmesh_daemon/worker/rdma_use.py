"""What a worker does with RDMA devices, and what came of it: told to the daemon, which remembers."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from macmesh.v1 import lane_pb2
from macmesh_rdma.errors import RemoteCorruptError, RemoteProviderError, TransportError

if TYPE_CHECKING:
    from macmesh_rdma.group import Group


class RdmaUse:
    """Follows the links over RDMA devices of one epoch; does nothing in one that has none.

    Args:
        is_used: whether the plan's links go over RDMA devices.
        tell: tells the daemon; from any thread.
    """

    def __init__(self, *, is_used: bool, tell: Callable[[lane_pb2.WorkerEvent], None]) -> None:
        self._is_used = is_used
        self._tell = tell
        self._group: Group | None = None
        self._told = 0, 0
        self._faulty = False
        self.failure = ""
        """What was wrong with the transport itself; empty while nothing was."""

    @contextlib.contextmanager
    def setting_up(self) -> Iterator[None]:
        """Is entered while the group is made. Every error counts against the transport: see `WorkerShell`."""
        if not self._is_used:
            yield
            return
        from macmesh_rdma.verbs.opening import verbs_counts  # noqa: PLC0415  imports mlx

        # A worker lives on from one plan to the next: what it made before has been told.
        counted = verbs_counts()
        self._told = counted.queue_pairs_made, counted.queue_pairs_freed
        self._say(lane_pb2.RdmaUse(setups=1))
        try:
            yield
        except TransportError as error:
            self._note(error)
            raise
        finally:
            self.tell_counts()

    def follow(self, group: "Group") -> "Group":
        """Follows a group over the links; returns it."""
        if self._is_used:
            self._group = group
        return group

    def look(self) -> None:
        """Looks whether the group ended because what came over its links was damaged, or nothing came at all."""
        failure = self._group.failure if self._group is not None else None
        if failure is None:
            return
        from macmesh_rdma.verbs.opening import SILENT  # noqa: PLC0415  imports mlx

        if isinstance(failure, RemoteCorruptError) or SILENT in str(failure):
            self._note(RemoteProviderError(f"over RDMA devices: {failure}", peer=failure.peer))

    def close(self) -> None:
        """Frees what is left, and tells so. Once nobody uses the group any more."""
        if self._group is not None:
            self._group.close()
            self._group = None
        self.tell_counts()

    def tell_counts(self) -> None:
        """Tells what was made and freed since it told last."""
        if not self._is_used:
            return
        from macmesh_rdma.verbs.opening import verbs_counts  # noqa: PLC0415  imports mlx

        counted = verbs_counts()
        made, freed = self._told
        self._told = counted.queue_pairs_made, counted.queue_pairs_freed
        if self._told != (made, freed):
            use = lane_pb2.RdmaUse(
                queue_pairs_made=counted.queue_pairs_made - made,
                queue_pairs_freed=counted.queue_pairs_freed - freed,
            )
            self._say(use)

    def _note(self, error: TransportError) -> None:
        self.failure = self.failure or str(error)
        if not isinstance(error, RemoteProviderError) or error.peer is None or self._faulty:
            return
        self._faulty = True
        fault = lane_pb2.RdmaFault(peer_stage=error.peer, reason=str(error))
        self._say(lane_pb2.RdmaUse(faults=[fault]))

    def _say(self, use: lane_pb2.RdmaUse) -> None:
        self._tell(lane_pb2.WorkerEvent(rdma_use=use))
