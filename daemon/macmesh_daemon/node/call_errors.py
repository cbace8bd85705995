"""Errors that a call ends with.

CallError            a reason with its canonical gRPC code; every servicer ends a call through it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from macmesh.reasons import CODE_OF_REASON, Reason
from macmesh.wire_errors import WireFailure, read_failure, wire_failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc


class CallError(Exception):
    """What went wrong with a call: a reason, a message for people and facts for programs."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        metadata: Mapping[str, object] | None = None,
        code: grpc.StatusCode | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.failure: WireFailure = wire_failure(reason, message, metadata, code)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: CallError) -> NoReturn:
    """End the call with the error's code, message and ErrorInfo."""
    failure = error.failure
    await context.abort(failure.code, failure.message, failure.trailing_metadata)
    raise AssertionError("abort returned")  # it always raises


def known_reason(text: str) -> Reason:
    """The reason of that name; UNKNOWN where a newer node sent one that is not known here."""
    return Reason(text) if text in CODE_OF_REASON else Reason.UNKNOWN


def is_of_peer(error: grpc.aio.AioRpcError) -> bool:
    """Whether another node's servicer ended the call so, and not gRPC on its own."""
    return _failure_of(error) is not None


def _failure_of(error: grpc.aio.AioRpcError) -> WireFailure | None:
    metadata = [(key, value) for key, value in (error.trailing_metadata() or ())]
    return read_failure(error.code(), error.details() or "", metadata)


def from_rpc_error(error: grpc.aio.AioRpcError) -> CallError:
    """The CallError that another node's servicer ended a call with, so that it can be passed on."""
    failure = _failure_of(error)
    if failure is None:
        code, details = error.code(), error.details() or ""
        return CallError(Reason.PEER_UNREACHABLE, f"another node did not answer: {code.name}: {details}")
    return CallError(known_reason(failure.reason), failure.message, failure.metadata, failure.code)
