"""`daemonctl cluster members`, `evict` and `recover`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, printable, talk
from macmesh_daemon.cli.parsers import add_command

if TYPE_CHECKING:
    import argparse

    from macmesh.v1 import cluster_pb2
    from macmesh_daemon.cli.parsers import Subparsers

_MEMBERS_EXAMPLES = """
daemonctl cluster members           who is in, and who was shut out
daemonctl cluster members --json    for programs
"""
_EVICT_EXAMPLES = """
daemonctl cluster evict studio2     by its name, or by the beginning of its id
"""
_RECOVER_EXAMPLES = """
daemonctl cluster recover --force-quorum    on the machine that is to go on
"""


def add_parsers(group: Subparsers) -> None:
    """Add the commands."""
    add_command(
        group,
        "members",
        summary="the members of the cluster, and the ids that were shut out",
        examples=_MEMBERS_EXAMPLES,
        run=run_members,
        form="cluster-members",
    )
    evict = add_command(
        group,
        "evict",
        summary="shut a node out for good: its certificate is of no use from then on",
        examples=_EVICT_EXAMPLES,
        run=run_evict,
        form="cluster-evict",
    )
    evict.add_argument("node", metavar="NODE", help="a name, or the beginning of an id")
    recover = add_command(
        group,
        "recover",
        summary="go on without a quorum that is lost for good, from what this node has stored",
        examples=_RECOVER_EXAMPLES,
        run=run_recover,
        form="cluster-recover",
    )
    recover.add_argument(
        "--force-quorum",
        action="store_true",
        help="yes: give up what other members committed and this node has not stored",
    )


def run_members(args: argparse.Namespace) -> int:
    """Print the members."""
    with connect(args) as client:
        status = client.status()
    denied = list(status.document.denied_node_ids)
    if args.json:
        members = [
            {
                "node_id": node.member.node_id,
                "name": node.member.facts.hostname,
                "role": node.role,
                "liveness": node.liveness,
                "addresses": list(node.member.addresses),
                "evicting": node.member.evicting,
            }
            for node in status.nodes
        ]
        print_json(args, {"cluster": status.cluster, "members": members, "denied_ids": denied})
        return exit_codes.OK
    for node in status.nodes:
        leaving = "  being evicted" if node.member.evicting else ""
        print_data(
            f"{node.member.node_id}  {printable(node.member.facts.hostname) or '-':20}  {node.role:11}  "
            f"{node.liveness}{leaving}"
        )
    for shut_out in denied:
        print_data(f"{shut_out}  {'-':20}  shut out")
    return exit_codes.OK


def run_evict(args: argparse.Namespace) -> int:
    """Evict one node."""
    from macmesh.v1 import access_pb2  # noqa: PLC0415  loads protobuf

    with connect(args) as client:
        node = find_node(client.status(), args.node)
        response = client.access("Evict", access_pb2.EvictRequest(id=node))
    if args.json:
        print_json(args, {"node_id": node, "document_seq": response.document_seq})
    else:
        print_data(f"node {node[:8]} is shut out")
        talk("to come back it needs a new identity (an empty data folder) and a token")
    return exit_codes.OK


def run_recover(args: argparse.Namespace) -> int:
    """Begin a new generation here."""
    from macmesh.v1 import access_pb2  # noqa: PLC0415  loads protobuf

    if not args.force_quorum:
        raise CommandError(
            "a recovery gives up what other members committed and this node has not stored, and whatever runs "
            "anywhere ends; where the other members are lost for good, say so with --force-quorum",
            exit_code=exit_codes.USAGE,
            reason="INVALID_ARGUMENT",
        )
    with connect(args) as client:
        response = client.access("Recover", access_pb2.RecoverRequest())
    if args.json:
        print_json(args, {"generation": response.generation})
    else:
        print_data("this node goes on alone; members that can be reached rejoin by themselves")
        talk("do not recover on a second node: see `daemonctl cluster members` first")
    return exit_codes.OK


def find_node(status: cluster_pb2.GetStatusResponse, wanted: str) -> str:
    """The id of the one member with that name, or whose id begins so.

    Raises:
        CommandError: There is none, or more than one.
    """
    found = {
        node.member.node_id
        for node in status.nodes
        if wanted and (node.member.facts.hostname == wanted or node.member.node_id.startswith(wanted))
    }
    if len(found) != 1:
        what = "no member" if not found else f"{len(found)} members"
        raise CommandError(
            f"{what} with the name or the beginning of an id {wanted!r}: see `daemonctl cluster members`",
            reason="NOT_FOUND",
        )
    return found.pop()
