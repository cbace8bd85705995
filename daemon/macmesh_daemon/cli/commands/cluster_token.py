"""`daemonctl cluster token`: make, list and revoke join tokens."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, talk
from macmesh_daemon.cli.parsers import add_command, positive

if TYPE_CHECKING:
    from macmesh.v1 import access_pb2
    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl cluster token                        for one machine, good for an hour
daemonctl cluster token --ttl 15m --uses 3     for three machines within a quarter of an hour
daemonctl cluster token list                   those that live, and who came with them
daemonctl cluster token revoke k2m4x7aq3e      make one useless at once
"""
_TTL = re.compile(r"(\d{1,7})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_parsers(group: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        group,
        "token",
        summary="make a token with which another machine joins, or list and revoke them",
        examples=_EXAMPLES,
        run=run,
        form="cluster-token",
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=("issue", "list", "revoke"),
        default="issue",
        help="what to do (default issue)",
    )
    parser.add_argument("id", nargs="?", metavar="ID", help="the token to revoke, as listed")
    parser.add_argument(
        "--ttl",
        type=_ttl,
        default=3600,
        metavar="TIME",
        help="how long it is good, as 90s, 15m, 1h or 1d (default 1h)",
    )
    parser.add_argument(
        "--uses", type=positive, default=1, metavar="N", help="how many machines it lets in (default 1)"
    )


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    if (args.action == "revoke") != (args.id is not None):
        raise CommandError(
            "`revoke` takes the id of a token, the others take none",
            reason="USAGE",
            exit_code=exit_codes.USAGE,
        )
    return {"issue": _issue, "list": _list, "revoke": _revoke}[args.action](args)


def _issue(args: argparse.Namespace) -> int:
    from macmesh.v1 import access_pb2  # noqa: PLC0415  loads protobuf

    request = access_pb2.IssueJoinTokenRequest(ttl_seconds=args.ttl, uses=args.uses)
    with connect(args) as client:
        response = client.access("IssueJoinToken", request)
    if args.json:
        print_json(
            args, {"token": response.token, "addresses": list(response.addresses), **_facts(response.info)}
        )
        return exit_codes.OK
    print_data(response.token)
    machines = "one machine" if args.uses == 1 else f"{args.uses} machines"
    talk(
        f"lets {machines} in until {response.info.expires.ToDatetime():%Y-%m-%d %H:%M} UTC; on each of them:"
    )
    talk("  daemonctl cluster join TOKEN")
    if response.addresses:
        talk(f"  where multicast is blocked, add --address {response.addresses[0]}")
    else:
        talk("  but the join door did not open: see `daemonctl status`")
    return exit_codes.OK


def _list(args: argparse.Namespace) -> int:
    from macmesh.v1 import access_pb2  # noqa: PLC0415  as above

    with connect(args) as client:
        tokens = client.access("ListJoinTokens", access_pb2.ListJoinTokensRequest()).tokens
    if args.json:
        print_json(args, {"tokens": [_facts(token) for token in tokens]})
        return exit_codes.OK
    for token in tokens:
        admitted = ", ".join(node[:8] for node in token.admitted_node_ids) or "nobody yet"
        print_data(
            f"{token.token_id}  {token.state:8}{len(token.admitted_node_ids)}/{token.uses}  "
            f"until {token.expires.ToDatetime():%Y-%m-%d %H:%M} UTC  {admitted}"
        )
    if not tokens:
        talk("no tokens")
    return exit_codes.OK


def _revoke(args: argparse.Namespace) -> int:
    from macmesh.v1 import access_pb2  # noqa: PLC0415  as above

    with connect(args) as client:
        client.access("RevokeJoinToken", access_pb2.RevokeJoinTokenRequest(token_id=args.id))
    if args.json:
        print_json(args, {"token_id": args.id, "state": "revoked"})
    else:
        print_data(f"token {args.id} is revoked")
    return exit_codes.OK


def _facts(info: access_pb2.JoinTokenInfo) -> dict[str, Any]:
    return {
        "token_id": info.token_id,
        "state": info.state,
        "uses": info.uses,
        "created": info.created.ToJsonString(),
        "expires": info.expires.ToJsonString(),
        "admitted_node_ids": list(info.admitted_node_ids),
    }


def _ttl(text: str) -> int:
    match = _TTL.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 90s, 15m, 1h or 1d")
    return seconds
