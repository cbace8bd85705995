"""What a connected peer is reached by: descriptors, before native code takes them over."""

import contextlib
import dataclasses
import os
import socket

from macmesh_rdma.options import Provider


@dataclasses.dataclass
class TcpLane:
    """The sockets of one lane; each is connected, non-blocking and authenticated."""

    sockets: list[int]

    def descriptors(self) -> list[int]:
        """All of them."""
        return self.sockets


@dataclasses.dataclass
class ShmLane:
    """The memory of one lane for each direction, and the Unix socket that rings for each."""

    send_memory: int
    receive_memory: int
    send_doorbell: int
    receive_doorbell: int

    def descriptors(self) -> list[int]:
        """All of them."""
        return [self.send_memory, self.receive_memory, self.send_doorbell, self.receive_doorbell]


@dataclasses.dataclass
class VerbsLane:
    """The control socket of one lane, and sockets that only serve to measure TCP beside it.

    All are connected, non-blocking and authenticated. The bytes themselves go over RDMA devices.
    """

    control: int
    beside: list[int] = dataclasses.field(default_factory=list)

    def descriptors(self) -> list[int]:
        """All of them."""
        return [self.control, *self.beside]


Lane = TcpLane | ShmLane | VerbsLane


@dataclasses.dataclass
class PeerLinks:
    """One peer.

    Attributes:
        peer: Its rank.
        provider: What carries the links.
        reason: Why that one.
        side: Descriptor of the side socket.
        lanes: By lane: 0 point to point, 1 collectives.
    """

    peer: int
    provider: Provider
    reason: str
    side: int
    lanes: dict[int, Lane]

    def close(self) -> None:
        """Closes all descriptors; only while they are ours."""
        for descriptor in [self.side, *(d for lane in self.lanes.values() for d in lane.descriptors())]:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.lanes = {}
        self.side = -1


def tune_tcp(sock: socket.socket) -> None:
    """No delays, and a dead machine is noticed within about ten seconds even where nothing is sent."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS calls the first one TCP_KEEPALIVE.
    idle: int = getattr(socket, "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE")
    sock.setsockopt(socket.IPPROTO_TCP, idle, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
