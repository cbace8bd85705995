"""Host transfers over a group of our own. Imports mlx."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import mlx.core as mx

from macmesh_rdma.group import Group
from macmesh_rdma.host_lane import HostLane


class GroupHostLane(HostLane):
    """Host transfers on the group's links for messages from point to point.

    They share the order of `mx.distributed.send` and `recv` of the same group: a rank that mixes the two must keep
    them in one order with its peer, and none of these may be under way in the same direction meanwhile.

    Args:
        group: what carries it; closed and aborted with the lane.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        """What carries it."""

    def send(self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float) -> None:
        """See `HostLane.send`."""
        with self._told():
            self.group.native.host_send(peer, list(arrays), timeout_seconds)

    def receive_into(self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float) -> None:
        """See `HostLane.receive_into`."""
        with self._told():
            self.group.native.host_receive_into(peer, list(arrays), timeout_seconds)

    def receive(self, peer: int, timeout_seconds: float) -> list[mx.array]:
        """See `HostLane.receive`."""
        with self._told():
            return self.group.native.host_receive(peer, timeout_seconds)

    def send_message(self, peer: int, data: bytes, timeout_seconds: float) -> None:
        """See `HostLane.send_message`."""
        with self._told():
            self.group.native.host_send_message(peer, data, timeout_seconds)

    def receive_message(self, peer: int, timeout_seconds: float | None) -> bytes:
        """See `HostLane.receive_message`."""
        with self._told():
            return self.group.native.host_receive_message(
                peer, math.inf if timeout_seconds is None else timeout_seconds
            )

    def abort(self, reason: str) -> None:
        """See `HostLane.abort`."""
        self.group.abort(reason)

    def close(self) -> None:
        """See `HostLane.close`."""
        self.group.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self.group.raise_failure(error)
