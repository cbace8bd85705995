"""`daemonctl client`: credentials for programs on other machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.commands.cluster_ca import write_private
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, printable, talk
from macmesh_daemon.cli.parsers import add_command, add_group, positive

if TYPE_CHECKING:
    import argparse

    from macmesh.v1 import access_pb2
    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl client issue laptop                          may generate; writes laptop.macmesh.json
daemonctl client issue ops --role admin --days 30      may change the cluster, for a month
daemonctl client list                                  who has credentials
daemonctl client revoke laptop                         they are of no use from then on
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands."""
    group = add_group(
        subparsers, "client", summary="credentials for programs on other machines", examples=_EXAMPLES
    )
    issue = _add(group, "issue", "write a credentials file for a program on another machine", run_issue)
    issue.add_argument("name", metavar="NAME", help="what to call it in lists")
    issue.add_argument(
        "--role",
        choices=("user", "admin", "observer"),
        default="user",
        help="user generates, observer only looks, admin also changes the cluster (default user)",
    )
    issue.add_argument(
        "--days", type=positive, default=365, metavar="N", help="how long it is good (default 365)"
    )
    issue.add_argument(
        "--output", metavar="FILE", help="the file to write, mode 0600 (default NAME.macmesh.json)"
    )
    _add(group, "list", "the clients that this node gave credentials to", run_list)
    revoke = _add(group, "revoke", "shut a client out for good", run_revoke)
    revoke.add_argument("client", metavar="CLIENT", help="a name, or the beginning of an id")


def _add(group: Subparsers, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    examples = [line for line in _EXAMPLES.strip().splitlines() if f"client {name}" in line]
    return add_command(
        group, name, summary=summary, examples="\n".join(examples), run=run, form=f"client-{name}"
    )


def run_issue(args: argparse.Namespace) -> int:
    """Make a key here, have it certified, and write both into one file."""
    from macmesh.credentials import Credentials  # noqa: PLC0415
    from macmesh.v1 import access_pb2  # noqa: PLC0415  loads protobuf
    from macmesh_daemon.identity import make_certificate_request  # noqa: PLC0415  loads cryptography
    from macmesh_daemon.identity.keys import new_private_key, private_key_to_pem  # noqa: PLC0415

    path = Path(args.output or f"{args.name}.macmesh.json").expanduser()
    if path.exists():
        raise CommandError(f"{path} is there already: name another file", reason="FILE_EXISTS")
    key_pem = private_key_to_pem(new_private_key())
    request = access_pb2.IssueClientRequest(
        name=args.name, role=args.role, days=args.days, request_der=make_certificate_request(key_pem)
    )
    with connect(args) as client:
        response = client.access("IssueClient", request)
    credentials = Credentials(
        ca_pem=response.ca_pem,
        certificate_pem=response.certificate_pem,
        key_pem=key_pem,
        addresses=tuple(response.addresses),
    )
    try:
        write_private(path, f"{credentials.to_json()}\n".encode())
    except OSError as error:
        raise CommandError(f"{path}: {error}", reason="FILE") from error
    if args.json:
        print_json(args, {"file": str(path), **_facts(response.info)})
    else:
        print_data(
            f"{path}: {args.name} may act as {args.role} until {response.info.expires.ToDatetime():%Y-%m-%d}"
        )
        talk("it holds a private key: move it to the client's machine and keep no copy; in Python:")
        talk(f'  macmesh.Client(credentials="{path.name}")')
    return exit_codes.OK


def run_list(args: argparse.Namespace) -> int:
    """Print the clients."""
    clients = _clients(args)
    if args.json:
        print_json(args, {"clients": [_facts(client) for client in clients]})
        return exit_codes.OK
    for client in clients:
        state = "revoked" if client.revoked else f"until {client.expires.ToDatetime():%Y-%m-%d}"
        print_data(f"{client.client_id}  {printable(client.name):20}  {client.role:8}  {state}")
    if not clients:
        talk("no clients")
    return exit_codes.OK


def run_revoke(args: argparse.Namespace) -> int:
    """Shut out every certificate of that name, or the one of that id."""
    from macmesh.v1 import access_pb2  # noqa: PLC0415  loads protobuf

    found = [
        client
        for client in _clients(args)
        if args.client and (client.name == args.client or client.client_id.startswith(args.client))
    ]
    names = {client.name for client in found}
    if len(names) != 1:
        what = "no client" if not found else "several clients"
        raise CommandError(
            f"{what} with the name or the beginning of an id {args.client!r}: see `daemonctl client list`",
            reason="NOT_FOUND",
        )
    with connect(args) as client:
        for record in found:
            if not record.revoked:
                client.access("Evict", access_pb2.EvictRequest(id=record.client_id))
    if args.json:
        print_json(args, {"revoked": [record.client_id for record in found]})
    else:
        print_data(f"client {found[0].name} is shut out")
    return exit_codes.OK


def _clients(args: argparse.Namespace) -> list[access_pb2.ClientInfo]:
    from macmesh.v1 import access_pb2  # noqa: PLC0415  loads protobuf

    with connect(args) as client:
        return list(client.access("ListClients", access_pb2.ListClientsRequest()).clients)


def _facts(info: access_pb2.ClientInfo) -> dict[str, Any]:
    return {
        "client_id": info.client_id,
        "name": info.name,
        "role": info.role,
        "issued": info.issued.ToJsonString(),
        "expires": info.expires.ToJsonString(),
        "revoked": info.revoked,
    }
