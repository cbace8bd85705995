"""What a rank wants to be connected to."""

import dataclasses
import os
from typing import Literal

from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.introduction import NONCE_BYTES, Introduction, Purpose

Topology = Literal["mesh", "pipeline"]
ProviderChoice = Literal["auto", "shm", "tcp", "verbs"]


def neighbours(rank: int, size: int, topology: Topology) -> tuple[int, ...]:
    """The ranks that one is connected to: all of them, or those beside it in the pipeline (tail to head too)."""
    if topology == "mesh":
        return tuple(peer for peer in range(size) if peer != rank)
    return tuple(sorted({(rank - 1) % size, (rank + 1) % size} - {rank}))


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that one rank knows before anybody is connected.

    Attributes:
        rank: Ours.
        endpoints: Of every rank.
        key: Of the epoch.
        own: Our introduction, but for what differs between connections.
        peers: The ranks to be connected to.
        lanes: Which links each pair has.
        stripes: Sockets of a ``tcp`` link.
        shm_bytes: Shared memory of one direction of a ``shm`` link.
        provider: What was asked for.
        beside: Whether a ``verbs`` link gets a socket to measure TCP beside it.
    """

    rank: int
    endpoints: tuple[Endpoint, ...]
    key: bytes
    own: Introduction
    peers: tuple[int, ...]
    lanes: tuple[int, ...]
    stripes: int
    shm_bytes: int
    provider: ProviderChoice
    beside: bool = False

    @property
    def link_purpose(self) -> Purpose:
        """What a socket of a link says that it is for."""
        return Purpose.VERBS if self.provider == "verbs" else Purpose.TCP

    @property
    def sockets(self) -> tuple[tuple[int, int], ...]:
        """Lane and number of every socket of a pair whose links are made of sockets."""
        if self.provider != "verbs":
            return tuple((lane, stripe) for lane in self.lanes for stripe in range(self.stripes))
        extra = ((self.lanes[0], 1),) if self.beside and self.lanes else ()
        return (*((lane, 0) for lane in self.lanes), *extra)

    def introduction(self, peer: int, purpose: Purpose, lane: int = 0, stripe: int = 0) -> Introduction:
        """What we say on a new connection to a peer."""
        return dataclasses.replace(
            self.own, target=peer, purpose=purpose, lane=lane, stripe=stripe, nonce=os.urandom(NONCE_BYTES)
        )
