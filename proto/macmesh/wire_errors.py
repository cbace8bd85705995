"""Errors as they travel: a gRPC status whose details carry one ``google.rpc.ErrorInfo``.

Both sides use this module, so that what the daemon says is what the SDK reads. A daemon ends a call with::

    failure = wire_failure(Reason.MODEL_NOT_FOUND, "no model folder 'x' in ...", {"model": "x"})
    await context.abort(failure.code, failure.message, failure.trailing_metadata)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs exist

from macmesh.reasons import CODE_OF_REASON, DOMAIN, Reason

#: Trailing metadata key of a serialised google.rpc.Status.
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"

#: Longest message and metadata value: gRPC peers may refuse more than 8 KiB of metadata altogether.
_LONGEST_TEXT: Final = 2000


@dataclass(frozen=True, slots=True)
class WireFailure:
    """A failure, ready for ``context.abort``.

    Attributes:
        code: The canonical code.
        message: For people: what happened, where, what to do.
        reason: UPPER_SNAKE.
        metadata: Facts, by name.
    """

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The trailing metadata that carries the reason."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata))
        detail = any_pb2.Any()
        detail.Pack(info)
        number: int = self.code.value[0]
        status = status_pb2.Status(code=number, message=self.message, details=[detail])
        return ((STATUS_DETAILS_KEY, status.SerializeToString()),)


def wire_failure(
    reason: Reason,
    message: str,
    metadata: Mapping[str, object] | None = None,
    code: grpc.StatusCode | None = None,
) -> WireFailure:
    """Make a failure; the code is the reason's own unless given. Over-long texts end in an ellipsis."""
    return WireFailure(
        code=code or grpc.StatusCode[CODE_OF_REASON[reason]],
        message=_cut(message),
        reason=str(reason),
        metadata={key: _cut(str(value)) for key, value in (metadata or {}).items()},
    )


def read_failure(
    code: grpc.StatusCode, message: str, trailing_metadata: Iterable[tuple[str, str | bytes]] | None
) -> WireFailure | None:
    """Read a failure back; None where the status carries no ErrorInfo of macmesh."""
    for key, value in trailing_metadata or ():
        if key != STATUS_DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except DecodeError:
            return None
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if (
                detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
                and detail.Unpack(info)
                and info.domain == DOMAIN
            ):
                return WireFailure(code, message, info.reason, dict(info.metadata))
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
