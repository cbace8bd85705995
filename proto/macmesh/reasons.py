"""Why a call failed: the reasons that travel as ``google.rpc.ErrorInfo.reason``, and the gRPC code of each.

The daemon raises them, the SDK hands them to the caller as ``error.reason``. A newer daemon may send a reason
that is not listed here, so compare with ``==`` and keep a default branch. `DOMAIN` is their ErrorInfo.domain.

Metadata is a small map of strings (ErrorInfo.metadata). Its keys per reason are stated below; numbers are
decimal.
"""

from enum import StrEnum
from typing import Final

DOMAIN: Final = "macmesh"


class Reason(StrEnum):
    """Every reason of the daemon, then those that the SDK itself finds."""

    #: No folder of that name on the node that was asked. Metadata: ``model``.
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    #: The folder is there but its content is not a whole model. Metadata: ``model``, ``file``.
    MODEL_BROKEN = "MODEL_BROKEN"
    #: mlx-lm has no code for the model's ``model_type``, or it cannot be split. Metadata: ``model_type``.
    UNSUPPORTED_ARCHITECTURE = "UNSUPPORTED_ARCHITECTURE"
    #: The context asked for is above the model's own limit. Metadata: ``context_tokens``, ``position_limit``.
    CONTEXT_ABOVE_POSITION_LIMIT = "CONTEXT_ABOVE_POSITION_LIMIT"
    #: Prompt and max_tokens together pass the context served.
    #: Metadata: ``prompt_tokens``, ``max_tokens``, ``context_tokens``.
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    #: No plan holds the model at that context. Metadata: ``deficit_bytes``, ``largest_context_tokens``.
    DOES_NOT_FIT = "DOES_NOT_FIT"
    #: The transport that was asked for cannot join the nodes of the plan.
    TRANSPORT_UNAVAILABLE = "TRANSPORT_UNAVAILABLE"
    #: The cluster serves nothing, or another model than the one asked for. Metadata: ``model``.
    NO_MODEL_LOADED = "NO_MODEL_LOADED"
    #: A plan is committed but its workers are not ready yet. Metadata: ``serving_state``.
    NOT_READY = "NOT_READY"
    #: Fewer voters answer than a change needs; what runs goes on. Metadata: ``alive``, ``needed``.
    NO_QUORUM = "NO_QUORUM"
    #: The node asked is not the coordinator (any more). Metadata: ``coordinator`` where one is known.
    NOT_COORDINATOR = "NOT_COORDINATOR"
    #: An election is going on.
    NO_COORDINATOR = "NO_COORDINATOR"
    #: Every slot and every place in the queue is taken. Metadata: ``slots``, ``waiting``.
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    #: A field of the request has a value that no state of the cluster would take. Metadata: ``field``.
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    #: The worker of a stage ended or reported an error. Metadata: ``node``, ``stage``.
    WORKER_FAILED = "WORKER_FAILED"
    #: The plan changed while the request ran. Metadata: ``epoch``.
    EPOCH_CHANGED = "EPOCH_CHANGED"
    #: Another node did not answer before its deadline. Metadata: ``node``.
    PEER_UNREACHABLE = "PEER_UNREACHABLE"
    #: The caller's certificate is not one of this cluster, or it may not do this.
    NOT_A_MEMBER = "NOT_A_MEMBER"
    #: The caller's role does not allow this call. Metadata: ``role``.
    FORBIDDEN = "FORBIDDEN"
    #: The cluster has shut the caller out for good.
    EVICTED = "EVICTED"
    #: The node that was asked belongs to no cluster yet.
    NOT_JOINED = "NOT_JOINED"
    #: The node that was asked does not hold the CA key, which signing needs.
    NO_CA_KEY = "NO_CA_KEY"
    #: No node, client or token of that name or id. Metadata: ``id``.
    NOT_FOUND = "NOT_FOUND"
    #: The daemon is going down.
    SHUTTING_DOWN = "SHUTTING_DOWN"
    #: A fault of the daemon; its log says more.
    INTERNAL = "INTERNAL"

    #: Found by the SDK: nothing listens on the daemon's socket.
    DAEMON_NOT_RUNNING = "DAEMON_NOT_RUNNING"
    #: Found by the SDK: the socket belongs to another user, or may not be opened.
    SOCKET_FORBIDDEN = "SOCKET_FORBIDDEN"
    #: Found by the SDK: the credentials cannot be read.
    BAD_CREDENTIALS = "BAD_CREDENTIALS"
    #: Found by the SDK: the connection to a remote node failed or broke.
    CONNECTION_FAILED = "CONNECTION_FAILED"
    #: Found by the SDK: the deadline of the caller passed.
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    #: Found by the SDK: the call was cancelled.
    CANCELLED = "CANCELLED"
    #: Found by the SDK: the client or stream was closed.
    CLOSED = "CLOSED"
    #: The other side sent a status without ErrorInfo: a proxy, or not a macmesh daemon.
    UNKNOWN = "UNKNOWN"


#: Name of the canonical gRPC code that goes with each reason. UNAVAILABLE, ABORTED and RESOURCE_EXHAUSTED
#: mean "the same call may succeed later"; FAILED_PRECONDITION means "not before something else changes".
CODE_OF_REASON: Final[dict[Reason, str]] = {
    Reason.MODEL_NOT_FOUND: "NOT_FOUND",
    Reason.MODEL_BROKEN: "FAILED_PRECONDITION",
    Reason.UNSUPPORTED_ARCHITECTURE: "FAILED_PRECONDITION",
    Reason.CONTEXT_ABOVE_POSITION_LIMIT: "INVALID_ARGUMENT",
    Reason.CONTEXT_LENGTH_EXCEEDED: "INVALID_ARGUMENT",
    Reason.DOES_NOT_FIT: "FAILED_PRECONDITION",
    Reason.TRANSPORT_UNAVAILABLE: "FAILED_PRECONDITION",
    Reason.NO_MODEL_LOADED: "FAILED_PRECONDITION",
    Reason.NOT_READY: "UNAVAILABLE",
    Reason.NO_QUORUM: "UNAVAILABLE",
    Reason.NOT_COORDINATOR: "ABORTED",
    Reason.NO_COORDINATOR: "UNAVAILABLE",
    Reason.RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    Reason.INVALID_ARGUMENT: "INVALID_ARGUMENT",
    Reason.WORKER_FAILED: "UNAVAILABLE",
    Reason.EPOCH_CHANGED: "ABORTED",
    Reason.PEER_UNREACHABLE: "UNAVAILABLE",
    Reason.NOT_A_MEMBER: "PERMISSION_DENIED",
    Reason.FORBIDDEN: "PERMISSION_DENIED",
    Reason.EVICTED: "PERMISSION_DENIED",
    Reason.NOT_JOINED: "FAILED_PRECONDITION",
    Reason.NO_CA_KEY: "FAILED_PRECONDITION",
    Reason.NOT_FOUND: "NOT_FOUND",
    Reason.SHUTTING_DOWN: "UNAVAILABLE",
    Reason.INTERNAL: "INTERNAL",
    Reason.DAEMON_NOT_RUNNING: "UNAVAILABLE",
    Reason.SOCKET_FORBIDDEN: "PERMISSION_DENIED",
    Reason.BAD_CREDENTIALS: "UNAUTHENTICATED",
    Reason.CONNECTION_FAILED: "UNAVAILABLE",
    Reason.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    Reason.CANCELLED: "CANCELLED",
    Reason.CLOSED: "CANCELLED",
    Reason.UNKNOWN: "UNKNOWN",
}
