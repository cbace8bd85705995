"""Errors that a call ends with.

CallError            a gRPC status with its reason; every servicer ends a call through it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

DOMAIN = "macmesh"
DETAILS_KEY = "grpc-status-details-bin"


class CallError(Exception):
    """A canonical gRPC code with an UPPER_SNAKE reason, a message for people and facts for programs."""

    def __init__(
        self, code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})

    def status_details(self) -> bytes:
        """The serialised google.rpc.Status that travels in the trailing metadata."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        detail = any_pb2.Any()
        detail.Pack(info)
        number: int = self.code.value[0]
        return status_pb2.Status(code=number, message=self.message, details=[detail]).SerializeToString()


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: CallError) -> NoReturn:
    """End the call with the error's code, message and ErrorInfo."""
    await context.abort(
        error.code, error.message, trailing_metadata=((DETAILS_KEY, error.status_details()),)
    )
    raise AssertionError  # abort always raises


def from_rpc_error(error: grpc.RpcError, *, fallback_reason: str) -> CallError:
    """The CallError that another node's servicer ended with, so that it can be passed on unchanged."""
    code = error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    details = (error.details() or "") if isinstance(error, grpc.aio.AioRpcError) else str(error)
    if isinstance(error, grpc.aio.AioRpcError):
        for key, value in error.trailing_metadata():
            if key == DETAILS_KEY and isinstance(value, bytes):
                status = status_pb2.Status.FromString(value)
                for detail in status.details:
                    info = error_details_pb2.ErrorInfo()
                    if detail.Unpack(info):
                        return CallError(code, info.reason, status.message, dict(info.metadata))
    return CallError(code, fallback_reason, details)
