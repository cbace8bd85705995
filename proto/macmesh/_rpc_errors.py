"""From a gRPC error to an error of the SDK."""

from typing import Any

import grpc

from macmesh._targets import Target, unix_failure
from macmesh.errors import LocalDeadlineError, MacmeshError, RemoteError, RemoteUnavailableError, remote_error
from macmesh.reasons import Reason


def translate(error: grpc.RpcError, target: Target, call: str, timeout_seconds: float | None) -> MacmeshError:
    """The SDK's error for a failed call.

    Args:
        error: As raised by grpc or grpc.aio; both carry code, details and trailing metadata.
        target: Where the call went.
        call: Name of the RPC, for the message.
        timeout_seconds: The deadline that the call was given, if any.
    """
    from macmesh.wire_errors import read_failure  # noqa: PLC0415  only failures need google.rpc's messages

    facts: Any = error  # grpc.RpcError is a bare marker; both of its real classes have these methods
    code: grpc.StatusCode = facts.code() or grpc.StatusCode.UNKNOWN
    details: str = facts.details() or ""
    failure = read_failure(code, details, facts.trailing_metadata())
    if failure is not None:
        return remote_error(
            failure.message or failure.reason,
            code=code.name,
            reason=failure.reason,
            metadata=failure.metadata,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_seconds is not None:
        return LocalDeadlineError(
            f"{call} at {target} did not end within {timeout_seconds:g} s",
            {"call": call, "timeout_seconds": f"{timeout_seconds:g}"},
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(target, call, details)
    return remote_error(
        f"{call} at {target} failed: {details or code.name}",
        code=code.name,
        reason=Reason.CANCELLED if code is grpc.StatusCode.CANCELLED else Reason.UNKNOWN,
        metadata={"call": call},
    )


def _unavailable(target: Target, call: str, details: str) -> MacmeshError:
    """No ErrorInfo came, so the connection itself failed or broke."""
    if target.socket is not None:
        local = unix_failure(target.socket)
        if local is not None:
            return local
    return connection_failed(target, call, details)


def connection_failed(target: Target, call: str, details: str) -> RemoteError:
    """The error of a connection that could not be made or was lost."""
    hint = (
        " Are the credentials of this cluster?"
        if "handshake" in details.lower() or "certificate" in details.lower()
        else ""
    )
    return RemoteUnavailableError(
        f"{call}: the connection to {target} failed: {details or 'unavailable'}.{hint}",
        code="UNAVAILABLE",
        reason=Reason.CONNECTION_FAILED,
        metadata={"call": call, "target": str(target)},
    )
