"""The weights of other nodes, over the connections to them."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import grpc

from macmesh.reasons import Reason
from macmesh.v1 import peer_pb2
from macmesh_daemon.node.call_errors import from_rpc_error
from macmesh_daemon.weights.errors import RemoteSourceBusyError, RemoteSourceFailedError
from macmesh_daemon.weights.fetcher import PeerHoldings
from macmesh_daemon.weights.library import FileEntry, Manifest
from macmesh_daemon.weights.ranges import RangeSet

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence

    from macmesh.v1.peer_pb2_grpc import PeerServiceAsyncStub
    from macmesh_daemon.node.peers import PeerPool
    from macmesh_daemon.weights.pieces import Piece

#: A manifest hashes the small files, and may look through the model folders first.
MANIFEST_SECONDS: Final = 30.0
HOLDINGS_SECONDS: Final = 10.0
#: A batch is 64 MiB: a slow disk reads that in a second.
HASHES_SECONDS: Final = 60.0
#: Longest silence within a stream: the slowest rate that may be configured sends a chunk in less.
CHUNK_SECONDS: Final = 20.0
#: For a whole stream.
STREAM_SECONDS: Final = 1800.0


class GrpcWeights:
    """Asks peers by their node id; see `fetcher.PeerWeights`."""

    def __init__(self, peers: PeerPool) -> None:
        self._peers = peers

    async def manifest(self, peer: str, digest: str) -> Manifest | None:
        """See `PeerWeights.manifest`."""
        request = peer_pb2.GetModelManifestRequest(digest=digest)
        with _told(peer):
            answer = await self._stub(peer).GetModelManifest(request, timeout=MANIFEST_SECONDS)
        if not answer.has:
            return None
        files = tuple(
            FileEntry(file.name, file.size_bytes, file.head_bytes, file.sha256.hex()) for file in answer.files
        )
        return Manifest(digest, files, answer.hub_model, answer.hub_commit)

    async def holdings(self, peer: str, digest: str, wanted: Sequence[Piece]) -> PeerHoldings:
        """See `PeerWeights.holdings`; nearer is who answers sooner."""
        began = time.monotonic()
        with _told(peer):
            answer = await self._stub(peer).GetHoldings(
                peer_pb2.GetHoldingsRequest(digest=digest), timeout=HOLDINGS_SECONDS
            )
        took = time.monotonic() - began
        if answer.whole:
            return PeerHoldings(frozenset(wanted), answer.is_busy, took)
        held = {
            file.name: RangeSet(zip(file.edges[::2], file.edges[1::2], strict=False)) for file in answer.files
        }
        nothing = RangeSet()
        pieces = (piece for piece in wanted if held.get(piece.file, nothing).covers(piece.begin, piece.end))
        return PeerHoldings(frozenset(pieces), answer.is_busy, took)

    async def hashes(self, peer: str, digest: str, pieces: Sequence[Piece]) -> Mapping[Piece, str]:
        """See `PeerWeights.hashes`."""
        request = peer_pb2.HashRangesRequest(digest=digest, ranges=_ranges(pieces))
        with _told(peer):
            answer = await self._stub(peer).HashRanges(request, timeout=HASHES_SECONDS)
        if len(answer.sha256) != len(pieces):
            raise RemoteSourceFailedError(
                f"node {peer[:8]} gave {len(answer.sha256)} hashes for {len(pieces)}"
            )
        return {piece: sha.hex() for piece, sha in zip(pieces, answer.sha256, strict=True) if sha}

    async def fetch(
        self, peer: str, digest: str, pieces: Sequence[Piece]
    ) -> AsyncGenerator[tuple[Piece, bytes], None]:
        """See `PeerWeights.fetch`."""
        request = peer_pb2.FetchRangesRequest(digest=digest, ranges=_ranges(pieces))
        call = self._stub(peer).FetchRanges(request, timeout=STREAM_SECONDS)
        chunks = aiter(call)
        try:
            for index, piece in enumerate(pieces):
                content = bytearray()
                while len(content) < piece.size_bytes:
                    chunk = await _next(chunks, peer)
                    if chunk.range_index != index or not chunk.content:
                        raise RemoteSourceFailedError(f"node {peer[:8]} sends what it was not asked for")
                    content += chunk.content
                if len(content) > piece.size_bytes:
                    raise RemoteSourceFailedError(f"node {peer[:8]} sends more than it was asked for")
                yield piece, bytes(content)
        finally:
            call.cancel()

    def _stub(self, peer: str) -> PeerServiceAsyncStub:
        stub = self._peers.stub(peer)
        if stub is None:
            raise RemoteSourceFailedError(f"no address of node {peer[:8]} is known")
        return stub


async def _next(
    chunks: AsyncIterator[peer_pb2.FetchRangesResponse], peer: str
) -> peer_pb2.FetchRangesResponse:
    try:
        with _told(peer):
            async with asyncio.timeout(CHUNK_SECONDS):
                return await anext(chunks)
    except StopAsyncIteration:
        raise RemoteSourceFailedError(f"node {peer[:8]} sent less than it was asked for") from None
    except TimeoutError:
        raise RemoteSourceFailedError(f"node {peer[:8]} sent nothing for {CHUNK_SECONDS:g} s") from None


def _ranges(pieces: Iterable[Piece]) -> list[peer_pb2.FileRange]:
    return [peer_pb2.FileRange(file=piece.file, begin=piece.begin, end=piece.end) for piece in pieces]


@contextmanager
def _told(peer: str) -> Iterator[None]:
    """Turn what a call may end with into errors of the weights package."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        known = from_rpc_error(error)
        kind = RemoteSourceBusyError if known.reason is Reason.RESOURCE_EXHAUSTED else RemoteSourceFailedError
        raise kind(f"node {peer[:8]}: {known.message}") from error
