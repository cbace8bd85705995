"""InferenceService: generation, on any node."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from macmesh.v1 import inference_pb2, inference_pb2_grpc
from macmesh_daemon.node.call_errors import CallError, abort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from macmesh_daemon.node.runtime import Node


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Streams what the request desk delivers."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def Generate(
        self,
        request: inference_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Generate and stream; the end of the call, however it comes, frees the request's slot."""
        try:
            async with aclosing(self._node.requests.generate(request)) as responses:
                async for response in responses:
                    yield response
        except CallError as error:
            await abort(context, error)
