"""What a node is told that may be told nothing."""

from .messages import (
    CommitRequest,
    CommitResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    LeaveRequest,
    LeaveResponse,
    PrepareRequest,
    PrepareResponse,
    ProbeRequest,
    ProbeResponse,
    Request,
    RequestVoteRequest,
    RequestVoteResponse,
    Response,
    SetPeersRequest,
    SetPeersResponse,
    TransferLeadershipRequest,
    TransferLeadershipResponse,
)


def refusal_of(request: Request, reason: str) -> Response:  # noqa: PLR0911  one for each kind
    """The refusal of ``request``, which tells nothing of the cluster: no term, no document, no facts."""
    match request:
        case RequestVoteRequest():
            return RequestVoteResponse(pre_vote=request.pre_vote, reason=reason)
        case HeartbeatRequest():
            return HeartbeatResponse(round=request.round)
        case PrepareRequest():
            return PrepareResponse(request.plan.epoch if request.plan else None, reason=reason)
        case CommitRequest():
            return CommitResponse(request.epoch, reason=reason)
        case SetPeersRequest():
            return SetPeersResponse(request.epoch, reason=reason)
        case ProbeRequest():
            return ProbeResponse(target_node_id=request.target_node_id)
        case LeaveRequest():
            return LeaveResponse()
        case TransferLeadershipRequest():
            return TransferLeadershipResponse(reason=reason)
