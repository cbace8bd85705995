"""What there is of one peer while a group is connected."""

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from macmesh_rdma.errors import RemoteAbortedError, RemoteCorruptError, RemotePeerLostError
from macmesh_rdma.joining import conversation as talk
from macmesh_rdma.joining.conversation import Talk
from macmesh_rdma.joining.peer_links import Lane, PeerLinks, ShmLane, TcpLane, VerbsLane
from macmesh_rdma.joining.plan import Plan

if TYPE_CHECKING:
    from macmesh_rdma.options import Provider


class JoiningPeer:
    """One peer's connections so far; owns them.

    Attributes:
        number: Its rank.
        side: The side socket.
        tcp: Sockets by lane and stripe.
        shm: Shared memory by lane.
        provider: What carries the links; None until they stand.
        reason: Why that provider.
        announced: Whether we have told it that we are ready.
        ready: Whether it has told us so.
        trouble: Why it could not be reached so far.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.side: socket.socket | None = None
        self.tcp: dict[tuple[int, int], socket.socket] = {}
        self.shm: dict[int, ShmLane] = {}
        self.provider: Provider | None = None
        self.reason = ""
        self.announced = False
        self.ready = False
        self.trouble = ""

    def holds(self, connection: socket.socket) -> bool:
        """Whether a connection is kept here."""
        return connection is self.side or connection in self.tcp.values()

    def drop_shm(self) -> None:
        """Gives up its shared memory."""
        for lane in self.shm.values():
            close_all(lane.descriptors())
        self.shm.clear()

    def drop_tcp(self) -> None:
        """Gives up the sockets of its links."""
        for sock in self.tcp.values():
            sock.close()
        self.tcp.clear()

    def close(self) -> None:
        """Gives up everything."""
        self.drop_shm()
        self.drop_tcp()
        if self.side is not None:
            self.side.close()

    def take(self, plan: Plan) -> PeerLinks:
        """Gives everything to the caller; its links stand."""
        lanes: dict[int, Lane] = {}
        if self.provider == "shm":
            lanes.update(self.shm)
        else:
            for lane in plan.lanes:
                sockets = [self.tcp[place].detach() for place in plan.sockets if place[0] == lane]
                lanes[lane] = (
                    VerbsLane(sockets[0], sockets[1:]) if self.provider == "verbs" else TcpLane(sockets)
                )
        if self.side is None or self.provider is None:
            raise AssertionError
        taken = PeerLinks(self.number, self.provider, self.reason, self.side.detach(), lanes)
        self.side, self.shm, self.tcp = None, {}, {}
        return taken

    def announce(self) -> None:
        """Tells it that we are ready.

        Raises:
            RemotePeerLostError: it has gone.
        """
        if self.side is None:
            raise AssertionError
        self.announced = True
        try:
            # A few bytes on an idle socket always fit.
            self.side.send(talk.encode_record({"ready": ""}))
        except OSError as error:
            raise talk.local_or_lost(error, self.number, f"rank {self.number} has gone") from error

    def give_up(self, reason: str) -> None:
        """Tells it that we give up, where it still listens to this protocol."""
        if self.side is not None and not self.announced:
            with contextlib.suppress(OSError):
                self.side.send(talk.encode_record({"gave_up": reason}))

    def receive_record(self) -> Talk[dict[str, str]]:
        """What it says on the side socket.

        Raises:
            RemotePeerLostError: it has gone, or gave up (then RemoteAbortedError).
        """
        if self.side is None:
            raise AssertionError
        try:
            record = yield from talk.receive_record(self.side, self.number)
        except (EOFError, ConnectionError) as error:
            raise self.lost() from error
        if "gave_up" in record:
            raise RemoteAbortedError(f"rank {self.number} gave up: {record['gave_up']}", peer=self.number)
        return record

    def wait_until_ready(self) -> Talk[None]:
        """Waits for its word that it is ready.

        Raises:
            RemotePeerLostError: see `receive_record`.
            RemoteCorruptError: it says something else.
        """
        record = yield from self.receive_record()
        if "ready" not in record:
            raise RemoteCorruptError(
                f"rank {self.number} said {sorted(record)} instead of ready", peer=self.number
            )
        self.ready = True

    def lost(self) -> RemotePeerLostError:
        """The error that it has gone."""
        return RemotePeerLostError(f"rank {self.number} went while the group was connected", peer=self.number)

    def describe_delay(self) -> str:
        """What is missing, for people."""
        state = "did not become ready"
        if self.side is None:
            state = "never connected"
        elif self.provider is None:
            state = "did not finish its links"
        return f"rank {self.number} {state}" + (f" ({self.trouble})" if self.trouble else "")


def close_all(descriptors: Sequence[int]) -> None:
    """Closes descriptors, whatever state they are in."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
