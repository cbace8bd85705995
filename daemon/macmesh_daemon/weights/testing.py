"""The weights of other nodes in memory, for tests: libraries on the disk, and a network that can be spoilt."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from macmesh_daemon.weights.errors import (
    LocalModelUnknownError,
    LocalRangeError,
    RemoteSourceFailedError,
)
from macmesh_daemon.weights.fetcher import PeerHoldings
from macmesh_daemon.weights.ranges import RangeSet

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from macmesh_daemon.weights.library import Library, Manifest
    from macmesh_daemon.weights.pieces import Piece


@dataclass
class FakePeer:
    """One node.

    Attributes:
        library: What it serves.
        is_down: It answers nothing.
        breaks_after: Its streams break off after so many pieces in all; negative: never.
        lies: It states the hash of other bytes than those that it has ...
        spoils: ... or sends other bytes than those of which it states the hash.
        sent: Pieces that it sent, and how often.
        broke: Set when a stream broke off.
    """

    library: Library
    is_down: bool = False
    breaks_after: int = -1
    lies: bool = False
    spoils: bool = False
    sent: Counter[Piece] = field(default_factory=Counter)
    broke: asyncio.Event = field(default_factory=asyncio.Event)


class FakePeers:
    """Some nodes; see `fetcher.PeerWeights`."""

    def __init__(self, nodes: Mapping[str, FakePeer]) -> None:
        self.nodes = dict(nodes)

    async def manifest(self, peer: str, digest: str) -> Manifest | None:
        """See `PeerWeights.manifest`."""
        try:
            return await asyncio.to_thread(self._up(peer).library.manifest, digest)
        except LocalModelUnknownError:
            return None

    async def holdings(self, peer: str, digest: str, wanted: Sequence[Piece]) -> PeerHoldings:
        """See `PeerWeights.holdings`."""
        try:
            told = await asyncio.to_thread(self._up(peer).library.holdings, digest)
        except LocalModelUnknownError:
            return PeerHoldings(frozenset(), is_busy=False, distance=0.0)
        held = {name: RangeSet(ranges) for name, ranges in told.ranges.items()}
        pieces = frozenset(
            p for p in wanted if told.whole or (p.file in held and held[p.file].covers(p.begin, p.end))
        )
        return PeerHoldings(pieces, is_busy=False, distance=0.0)

    async def hashes(self, peer: str, digest: str, pieces: Sequence[Piece]) -> Mapping[Piece, str]:
        """See `PeerWeights.hashes`."""
        node = self._up(peer)
        if node.lies:
            return dict.fromkeys(pieces, "f" * 64)
        found: dict[Piece, str] = {}
        for piece in pieces:
            try:
                found[piece] = await asyncio.to_thread(node.library.hash_of, digest, piece)
            except LocalRangeError:
                continue
        return found

    async def fetch(
        self, peer: str, digest: str, pieces: Sequence[Piece]
    ) -> AsyncGenerator[tuple[Piece, bytes], None]:
        """See `PeerWeights.fetch`."""
        for piece in pieces:
            node = self._up(peer)
            if node.breaks_after == 0:
                node.broke.set()
                raise RemoteSourceFailedError(f"node {peer} broke off")
            node.breaks_after -= 1
            try:
                content = await asyncio.to_thread(node.library.read, digest, piece, 0, piece.size_bytes)
            except (LocalRangeError, LocalModelUnknownError) as error:
                raise RemoteSourceFailedError(str(error)) from error
            node.sent[piece] += 1
            yield piece, bytes(len(content)) if node.spoils or node.lies else content

    def _up(self, peer: str) -> FakePeer:
        node = self.nodes[peer]
        if node.is_down:
            raise RemoteSourceFailedError(f"node {peer} does not answer")
        return node
