"""Every error of the SDK.

::

    MacmeshError                         .message .code .reason .metadata .is_transient
    ├── LocalError                       found on this side: the caller, this machine, the caller's deadline
    │   ├── LocalArgumentError           an argument that no daemon would take (also a ValueError)
    │   ├── LocalCredentialsError        the credentials cannot be read or are not PEM
    │   ├── LocalDaemonNotRunningError   nothing listens on this machine's socket
    │   ├── LocalSocketForbiddenError    the socket belongs to another user
    │   ├── LocalDeadlineError           the caller's deadline passed (also a TimeoutError)
    │   └── LocalClosedError             the client or the stream was closed
    └── RemoteError                      the daemon said no, or was lost
        ├── RemoteInvalidError           INVALID_ARGUMENT, OUT_OF_RANGE: the request is wrong
        ├── RemoteNotFoundError          NOT_FOUND: such as an unknown model
        ├── RemoteRefusedError           FAILED_PRECONDITION: not before something else changes
        ├── RemoteForbiddenError         PERMISSION_DENIED, UNAUTHENTICATED: the certificate does not allow it
        ├── RemoteBusyError              RESOURCE_EXHAUSTED: every slot is taken; try again later
        ├── RemoteUnavailableError       UNAVAILABLE, ABORTED: try again later
        ├── RemoteDeadlineError          DEADLINE_EXCEEDED: a deadline inside the cluster passed
        ├── RemoteCancelledError         CANCELLED: the daemon ended the call
        └── RemoteInternalError          everything else: a fault of the daemon
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from macmesh.reasons import CODE_OF_REASON, Reason

_TRANSIENT_CODES: Final = frozenset({"UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED"})


class MacmeshError(Exception):
    """Base of every error of the SDK.

    Attributes:
        message: What happened, where, and what to do.
        code: Name of the canonical gRPC code, such as ``"NOT_FOUND"``.
        reason: UPPER_SNAKE reason, usually one of `macmesh.reasons.Reason`.
        metadata: Facts of the failure, by name; see `macmesh.reasons.Reason` for the keys.
    """

    def __init__(
        self, message: str, *, code: str, reason: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata: dict[str, str] = dict(metadata or {})

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed later without anybody doing anything."""
        return self.code in _TRANSIENT_CODES


class LocalError(MacmeshError):
    """Found on this side: the caller's arguments, this machine, or the caller's own deadline."""

    _reason: ClassVar[Reason] = Reason.UNKNOWN

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, code=CODE_OF_REASON[self._reason], reason=self._reason, metadata=metadata)


class LocalArgumentError(LocalError, ValueError):
    """An argument that no daemon would take."""

    _reason = Reason.INVALID_ARGUMENT


class LocalCredentialsError(LocalError):
    """The credentials cannot be read."""

    _reason = Reason.BAD_CREDENTIALS


class LocalDaemonNotRunningError(LocalError):
    """Nothing listens on the Unix socket of this machine's daemon."""

    _reason = Reason.DAEMON_NOT_RUNNING


class LocalSocketForbiddenError(LocalError):
    """The Unix socket belongs to another user or may not be opened."""

    _reason = Reason.SOCKET_FORBIDDEN


class LocalDeadlineError(LocalError, TimeoutError):
    """The deadline that the caller set, or the default of the call, passed. The call was cancelled."""

    _reason = Reason.DEADLINE_EXCEEDED


class LocalClosedError(LocalError):
    """The client or the stream was closed before."""

    _reason = Reason.CLOSED


class RemoteError(MacmeshError):
    """The daemon refused or failed, or the connection to it did."""


class RemoteInvalidError(RemoteError):
    """The request is wrong; repeating it is pointless."""


class RemoteNotFoundError(RemoteError):
    """What the request names does not exist."""


class RemoteRefusedError(RemoteError):
    """The cluster is not in a state that allows the call; something else has to change first."""


class RemoteForbiddenError(RemoteError):
    """The caller's certificate does not allow the call."""


class RemoteBusyError(RemoteError):
    """Everything is taken; the same call may succeed later."""


class RemoteUnavailableError(RemoteError):
    """The daemon or a part of the cluster is away; the same call may succeed later."""


class RemoteDeadlineError(RemoteError):
    """A deadline inside the cluster passed."""


class RemoteCancelledError(RemoteError):
    """The daemon ended the call."""


class RemoteInternalError(RemoteError):
    """A fault of the daemon."""


_CLASS_OF_CODE: Final[dict[str, type[RemoteError]]] = {
    "INVALID_ARGUMENT": RemoteInvalidError,
    "OUT_OF_RANGE": RemoteInvalidError,
    "NOT_FOUND": RemoteNotFoundError,
    "FAILED_PRECONDITION": RemoteRefusedError,
    "PERMISSION_DENIED": RemoteForbiddenError,
    "UNAUTHENTICATED": RemoteForbiddenError,
    "RESOURCE_EXHAUSTED": RemoteBusyError,
    "UNAVAILABLE": RemoteUnavailableError,
    "ABORTED": RemoteUnavailableError,
    "DEADLINE_EXCEEDED": RemoteDeadlineError,
    "CANCELLED": RemoteCancelledError,
}


def remote_error(
    message: str, *, code: str, reason: str, metadata: Mapping[str, str] | None = None
) -> RemoteError:
    """The `RemoteError` of the right class for a code."""
    return _CLASS_OF_CODE.get(code, RemoteInternalError)(message, code=code, reason=reason, metadata=metadata)
