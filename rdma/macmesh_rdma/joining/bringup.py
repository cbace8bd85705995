"""Connects the ranks of a group to each other, in the calling thread.

The higher rank of a pair dials. It opens the side socket first, over the Unix socket where both are on one machine and
may use shared memory; then it opens the links, falls back from ``shm`` to ``tcp`` where that is allowed and needed, and
tells the other side on the side socket what it has made and why. When a rank has all its peers, it says so to each of
them, and is done when all of them have said so too: so nobody starts before its neighbours are complete. Whoever gives
up says why to all it has reached.

A rank may still be busy with an older group when a peer dials for the next; the dialler then tries again.
"""

import socket
import threading
import time
from collections.abc import Collection, Sequence
from typing import get_args

from macmesh_rdma.errors import LocalInterruptedError, LocalOptionError, RemoteTimeoutError, TransportError
from macmesh_rdma.joining import conversation as talk
from macmesh_rdma.joining.accepting import Acceptor
from macmesh_rdma.joining.dialling import Dialler
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.handshake import LEAST_KEY_BYTES
from macmesh_rdma.joining.introduction import NONCE_BYTES, EpochNumbers, Introduction, Purpose
from macmesh_rdma.joining.joining_peer import JoiningPeer
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.joining.peer_links import PeerLinks
from macmesh_rdma.joining.plan import Plan, ProviderChoice, Topology, neighbours
from macmesh_rdma.joining.reactor import Reactor
from macmesh_rdma.options import LinkOptions

STOP_POLL_SECONDS = 0.05


def connect_peers(
    listener: Listener,
    rank: int,
    endpoints: Sequence[Endpoint],
    *,
    key: bytes,
    epoch: EpochNumbers,
    name: str,
    topology: Topology = "mesh",
    lanes: Collection[int] = (0, 1),
    options: LinkOptions | None = None,
    provider: ProviderChoice = "auto",
    beside: bool = False,
    timeout_seconds: float = 10.0,
    stop: threading.Event | None = None,
) -> dict[int, PeerLinks]:
    """Connects this rank to its neighbours; every rank of the group must call it at about the same time.

    Args:
        listener: our own; its endpoint is ``endpoints[rank]``.
        rank: ours.
        endpoints: of every rank.
        key: of the epoch; at least 16 bytes.
        epoch: of the plan.
        name: of the group; groups of one epoch need different ones.
        topology: who is connected to whom.
        lanes: which links each pair has: 0 point to point, 1 collectives.
        options: of the links; all ranks must have the same.
        provider: what carries the links; "auto": ``shm`` between ranks of one machine where it works, else ``tcp``.
            "verbs": each lane is a control socket, and the caller makes the link over RDMA devices.
        beside: with "verbs", a further socket to measure TCP beside it.
        timeout_seconds: for everything.
        stop: ends it when set, as closing the listener does.

    Returns:
        By peer, descriptors that are the caller's to close.

    Raises:
        LocalOptionError: an argument makes no sense.
        LocalResourceError: out of descriptors, or of shared memory that was asked for.
        LocalProviderError: ``shm`` was asked for and cannot be.
        LocalInterruptedError: stopped, or the listener is closed.
        RemotePeerLostError: a peer has gone, or gave up (then RemoteAbortedError).
        RemoteAuthenticationError: a peer does not hold the key.
        RemoteMismatchError: a peer is of another group, rank, epoch or other options.
        RemoteTimeoutError: not all were there in time; the message names them.
    """
    if not 0 <= rank < len(endpoints):
        raise LocalOptionError(f"rank {rank} is none of a group of {len(endpoints)}")
    if provider not in get_args(ProviderChoice):
        told = ", ".join(map(repr, get_args(ProviderChoice)))
        raise LocalOptionError(f"{provider!r} is no provider of links; there are {told}")
    if len(key) < LEAST_KEY_BYTES:
        raise LocalOptionError(f"an epoch's key has at least {LEAST_KEY_BYTES} bytes, not {len(key)}")
    options = options or LinkOptions()
    plan = Plan(
        rank=rank,
        endpoints=tuple(endpoints),
        key=key,
        own=Introduction(
            name=name,
            epoch=epoch,
            source=rank,
            target=rank,
            size=len(endpoints),
            purpose=Purpose.SIDE,
            lane=0,
            stripe=0,
            digest=options.digest(f"{provider} beside tcp" if beside else provider),
            nonce=bytes(NONCE_BYTES),
        ),
        peers=neighbours(rank, len(endpoints), topology),
        lanes=tuple(sorted(set(lanes))),
        stripes=options.sockets_per_link,
        shm_bytes=options.shm_bytes,
        provider=provider,
        beside=beside,
    )
    deadline = time.monotonic() + timeout_seconds
    with listener.connecting() as (listening, wake):
        bringup = _Bringup(plan, listener, listening)
        try:
            bringup.run(deadline, timeout_seconds, wake, stop)
            return bringup.take()
        except TransportError as error:
            bringup.give_up(str(error))
            error.epoch = error.epoch or plan.own.epoch_text
            raise
        except OSError as error:
            bringup.give_up(str(error))
            raise talk.local_or_lost(error, None, "connecting the group") from error
        finally:
            bringup.close()


class _Bringup:
    def __init__(self, plan: Plan, listener: Listener, listening: list[socket.socket]) -> None:
        self._plan = plan
        self._listener = listener
        self._listening = listening
        self._reactor = Reactor()
        self._peers = {number: JoiningPeer(number) for number in plan.peers}
        self._acceptor = Acceptor(plan, self._peers, self._reactor, listener.on_stranger)
        self._dialler = Dialler(plan, self._peers)

    def run(
        self, deadline: float, timeout_seconds: float, wake: socket.socket, stop: threading.Event | None
    ) -> None:
        self._reactor.watch(wake)
        for listening in self._listening:
            self._reactor.spawn(self._acceptor.accept(listening))
        for peer in self._plan.peers:
            if peer < self._plan.rank:
                self._reactor.spawn(self._dialler.dial(peer))
        while not self._is_complete():
            self._listener.require_open()
            if stop is not None and stop.is_set():
                raise LocalInterruptedError("told to stop connecting")
            now = time.monotonic()
            if now >= deadline:
                raise self._too_late(timeout_seconds)
            self._reactor.turn(deadline if stop is None else min(deadline, now + STOP_POLL_SECONDS))

    def _is_complete(self) -> bool:
        """Whether all peers are ready and know that we are; tells them as soon as it is so.

        Asked before every wait: a conversation may come to its end without one, and then nothing more comes that
        would end the wait.
        """
        self._announce()
        return all(peer.announced and peer.ready for peer in self._peers.values())

    def take(self) -> dict[int, PeerLinks]:
        """Gives everything to the caller."""
        return {number: peer.take(self._plan) for number, peer in self._peers.items()}

    def give_up(self, reason: str) -> None:
        for peer in self._peers.values():
            peer.give_up(reason)

    def close(self) -> None:
        self._reactor.close()
        for peer in self._peers.values():
            peer.close()

    def _too_late(self, timeout_seconds: float) -> RemoteTimeoutError:
        late = [peer for peer in self._peers.values() if not peer.ready]
        return RemoteTimeoutError(
            f"group {self._plan.own.name!r} of epoch {self._plan.own.epoch_text} was not connected within "
            f"{timeout_seconds:g} s: {'; '.join(peer.describe_delay() for peer in late)}",
            peer=late[0].number if len(late) == 1 else None,
        )

    def _announce(self) -> None:
        if any(peer.provider is None for peer in self._peers.values()):
            return
        for peer in self._peers.values():
            if not peer.announced and peer.side is not None:
                peer.announce()
