"""The part of PeerService that gives other members what this node holds of models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from macmesh.reasons import Reason
from macmesh.v1 import peer_pb2, peer_pb2_grpc
from macmesh_daemon.node.call_errors import CallError, abort
from macmesh_daemon.node.tls import caller_node_id
from macmesh_daemon.weights.errors import LocalModelUnknownError, LocalRangeError, RemoteSourceBusyError
from macmesh_daemon.weights.pieces import PIECE_BYTES, Piece

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import grpc

    from macmesh_daemon.weights.library import Library
    from macmesh_daemon.weights.serving import ServingLimits

CHUNK_BYTES: Final = 1 << 20
#: Ranges of one call.
MAX_RANGES: Final = 1024
#: Bytes of one call: several pieces, or the small files of a model.
MAX_CALL_BYTES: Final = 32 * PIECE_BYTES
#: A call without a deadline could hold a stream for ever.
MAX_CALL_SECONDS: Final = 3600.0


class WeightsService(peer_pb2_grpc.PeerServiceServicer):
    """Serves models by their digest; a caller names files as the manifest does, never by a path.

    Args:
        library: What is served.
        limits: How much of it at once.
    """

    def __init__(self, library: Library, limits: ServingLimits) -> None:
        self._library = library
        self._limits = limits

    async def GetModelManifest(
        self,
        request: peer_pb2.GetModelManifestRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002  the gate has judged the caller
    ) -> peer_pb2.GetModelManifestResponse:
        """The files of a model."""
        try:
            manifest = await asyncio.to_thread(self._library.manifest, request.digest)
        except LocalModelUnknownError:
            return peer_pb2.GetModelManifestResponse(has=False)
        return peer_pb2.GetModelManifestResponse(
            has=True,
            files=[
                peer_pb2.ModelFile(
                    name=entry.name,
                    size_bytes=entry.size_bytes,
                    head_bytes=entry.head_bytes,
                    sha256=bytes.fromhex(entry.sha256),
                )
                for entry in manifest.files
            ],
            hub_model=manifest.hub_model,
            hub_commit=manifest.hub_commit,
        )

    async def GetHoldings(
        self,
        request: peer_pb2.GetHoldingsRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002  as above
    ) -> peer_pb2.GetHoldingsResponse:
        """What is held of a model."""
        try:
            holdings = await asyncio.to_thread(self._library.holdings, request.digest)
        except LocalModelUnknownError:
            return peer_pb2.GetHoldingsResponse(has=False)
        return peer_pb2.GetHoldingsResponse(
            has=True,
            whole=holdings.whole,
            files=[
                peer_pb2.HeldFile(name=name, edges=[edge for pair in ranges for edge in pair])
                for name, ranges in holdings.ranges.items()
            ],
            is_busy=self._limits.is_busy,
        )

    async def HashRanges(
        self, request: peer_pb2.HashRangesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.HashRangesResponse:
        """Hashes of what is held."""
        pieces = await _pieces(context, request.ranges)
        try:
            with self._limits.stream(caller_node_id(context)):
                hashes = [await self._hash(request.digest, piece) for piece in pieces]
                await asyncio.to_thread(self._library.save)
        except LocalModelUnknownError as error:
            await abort(context, CallError(Reason.MODEL_NOT_FOUND, str(error)))
        except RemoteSourceBusyError as error:
            await abort(context, CallError(Reason.RESOURCE_EXHAUSTED, str(error)))
        return peer_pb2.HashRangesResponse(sha256=hashes)

    async def FetchRanges(
        self, request: peer_pb2.FetchRangesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[peer_pb2.FetchRangesResponse]:
        """The content of what is held, in chunks."""
        left = context.time_remaining()
        if left is None or left > MAX_CALL_SECONDS:
            text = f"a call for weights needs a deadline of at most {MAX_CALL_SECONDS:g} s"
            await abort(context, CallError(Reason.INVALID_ARGUMENT, text))
        pieces = await _pieces(context, request.ranges)
        try:
            with self._limits.stream(caller_node_id(context)):
                for index, piece in enumerate(pieces):
                    for offset in range(0, piece.size_bytes, CHUNK_BYTES):
                        content = await asyncio.to_thread(
                            self._library.read, request.digest, piece, offset, CHUNK_BYTES
                        )
                        await self._limits.pace(len(content))
                        yield peer_pb2.FetchRangesResponse(range_index=index, content=content)
        except LocalModelUnknownError as error:
            await abort(context, CallError(Reason.MODEL_NOT_FOUND, str(error)))
        except LocalRangeError as error:
            await abort(context, CallError(Reason.INVALID_ARGUMENT, str(error)))
        except RemoteSourceBusyError as error:
            await abort(context, CallError(Reason.RESOURCE_EXHAUSTED, str(error)))

    async def _hash(self, digest: str, piece: Piece) -> bytes:
        try:
            sha256 = await asyncio.to_thread(self._library.hash_of, digest, piece)
        except LocalRangeError:
            return b""
        return bytes.fromhex(sha256)


async def _pieces(
    context: grpc.aio.ServicerContext[Any, Any], ranges: Iterable[peer_pb2.FileRange]
) -> list[Piece]:
    pieces = [Piece(asked.file, asked.begin, asked.end) for asked in ranges]
    size = sum(max(0, piece.size_bytes) for piece in pieces)
    if len(pieces) > MAX_RANGES or size > MAX_CALL_BYTES:
        text = f"{len(pieces)} ranges of {size} bytes are too much for one call"
        await abort(context, CallError(Reason.INVALID_ARGUMENT, text))
    return pieces
