"""Who may call what: the one table, and the gate that every call of both doors passes.

The certificate says who calls; what is not in the table is refused. Whether the *right node* asks (only the
leader of the term may prepare or commit) is the cluster core's to judge, from the same certificate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from macmesh_daemon.identity import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOCAL = frozenset({Role.LOCAL})
_NODE = frozenset({Role.NODE})
_CHANGERS = frozenset({Role.LOCAL, Role.ADMIN})
_USERS = _CHANGERS | {Role.USER}
_LOOKERS = _USERS | {Role.OBSERVER}
_EVERYBODY = _LOOKERS | _NODE

_SERVICES: Final[dict[str, dict[str, frozenset[Role]]]] = {
    "macmesh.v1.PeerService": {
        "Hello": _NODE,
        "RequestVote": _NODE,
        "Heartbeat": _NODE,
        "Prepare": _NODE,
        "Commit": _NODE,
        "SetPeers": _NODE,
        "Probe": _NODE,
        "Leave": _NODE,
        "TransferLeadership": _NODE,
        "ProfileModel": _NODE,
        "ProposeChange": _NODE,
        "RunRequest": _NODE,
        "GetOwnStageStats": _NODE,
        # What a member holds of models, every member may have: by digest, never by a path.
        "GetModelManifest": _NODE,
        "GetHoldings": _NODE,
        "HashRanges": _NODE,
        "FetchRanges": _NODE,
        # Ends the callee's own worker, no more; the callee's configuration can refuse it.
        "MakeDrillFault": _NODE,
    },
    "macmesh.v1.TrustService": {
        "RenewCertificate": _NODE,
    },
    "macmesh.v1.ClusterService": {
        "GetStatus": _LOOKERS,
        "WatchCluster": _LOOKERS,
        # A dry run reads files and takes a processor for a while.
        "PlanModel": _CHANGERS,
        "LoadModel": _CHANGERS,
        "UnloadModel": _CHANGERS,
        "DrainNode": _CHANGERS,
        # Whoever may unload a model may interrupt it.
        "DrillFault": _CHANGERS,
        # Interrupts nothing, but every worker is asked.
        "GetStageStats": _USERS,
    },
    "macmesh.v1.InferenceService": {
        "Generate": _USERS,
    },
    "macmesh.v1.AccessService": {
        # Credentials cannot make more credentials.
        "IssueJoinToken": _LOCAL,
        "IssueClient": _LOCAL,
        "ListJoinTokens": _CHANGERS,
        "RevokeJoinToken": _CHANGERS,
        "ListClients": _CHANGERS,
        "Evict": _CHANGERS,
        # Whoever gives up the other members stands at the machine that goes on.
        "Recover": _LOCAL,
    },
    "grpc.health.v1.Health": {
        "Check": _EVERYBODY,
        "Watch": _EVERYBODY,
        "List": _EVERYBODY,
    },
}

#: ``/package.Service/Method`` to the roles that may call it.
WHO_MAY_CALL: Final[Mapping[str, frozenset[Role]]] = {
    f"/{service}/{method}": roles
    for service, methods in _SERVICES.items()
    for method, roles in methods.items()
}


def may_call(role: Role, method: str) -> bool:
    """Whether callers of that role may call the method; what is not in the table, nobody may."""
    return role in WHO_MAY_CALL.get(method, frozenset())
