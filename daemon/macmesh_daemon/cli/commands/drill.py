"""`daemonctl drill`: rehearse a fault on the running cluster."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect, socket_argument
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, printable, talk
from macmesh_daemon.cli.parsers import add_command, amount, positive

if TYPE_CHECKING:
    import argparse

    from macmesh.v1.cluster_pb2 import GetStatusResponse
    from macmesh_daemon.cli.parsers import Subparsers
    from macmesh_daemon.drill.report import DrillReport

_KINDS = ("kill-worker", "drain", "restart-coordinator")
_EXAMPLES = """
daemonctl drill kill-worker                  kill the last stage's worker: every stream must go on, whole
daemonctl drill drain --node studio2         take a node's stage away and give it back
daemonctl drill restart-coordinator --yes    the office changes hands and the coordinator's worker ends
"""
_WHAT = {
    "kill-worker": "the worker of {name} is killed; the plan is made anew",
    "drain": "{name} is drained, and the drain undone afterwards; the plan is made anew",
    "restart-coordinator": "{name} hands its office over and its worker is killed; the plan is made anew",
}
_PROMPT = "A rehearsal is the cheapest way to learn what breaks:"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "drill",
        summary="rehearse a fault on the running cluster",
        examples=_EXAMPLES,
        run=run,
    )
    parser.add_argument("kind", choices=_KINDS, metavar="KIND", help=", ".join(_KINDS))
    parser.add_argument(
        "--node",
        metavar="NODE",
        help="where: a name, or the beginning of an id (default: the last stage; the coordinator)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask: every stream pauses, or is lost")
    parser.add_argument(
        "--tokens",
        type=positive,
        default=256,
        metavar="N",
        help="tokens of the drill's own stream (default 256)",
    )
    parser.add_argument(
        "--after",
        type=positive,
        default=16,
        metavar="N",
        help="make the fault after so many of them (default 16)",
    )
    parser.add_argument(
        "--timeout",
        type=amount,
        default=300.0,
        metavar="SECONDS",
        help="longest wait for the stream, and for the cluster to serve again (default 300)",
    )


def run(args: argparse.Namespace) -> int:
    """Ask, rehearse, report; FAILED where tokens were lost, doubled or differ, or nothing serves afterwards."""
    if args.tokens <= args.after:
        raise _wrong("--tokens must be more than --after: the fault must come within the stream")
    with connect(args) as client:
        status = client.status()
    node_id = _node(args, status)
    name = _name(status, node_id)
    _consent(args, _WHAT[args.kind].format(name=name))
    report = _rehearse(args, node_id)
    if args.json:
        print_json(args, report.to_json())
    else:
        from macmesh_daemon.drill.report import render  # noqa: PLC0415  only people need it

        print_data(printable_lines(render(report, name)))
    return exit_codes.OK if report.passed else exit_codes.FAILED


def printable_lines(text: str) -> str:
    """The text without control characters, line by line."""
    return "\n".join(printable(line) for line in text.splitlines())


def _node(args: argparse.Namespace, status: GetStatusResponse) -> str:
    from macmesh_daemon.cli.commands.cluster_nodes import find_node  # noqa: PLC0415  needs it only here

    if args.node:
        return find_node(status, args.node)
    if args.kind == "restart-coordinator":
        return status.coordinator_node_id
    stages = [stage for plan in status.document.plan.deployments for stage in plan.stages]
    if not stages:
        raise CommandError(
            "the cluster serves nothing: load a model first",
            reason="NO_MODEL_LOADED",
        )
    return stages[-1].node_id


def _name(status: GetStatusResponse, node_id: str) -> str:
    hostnames = [n.member.facts.hostname for n in status.nodes if n.member.node_id == node_id]
    return f"{node_id[:8]} ({printable(hostnames[0])})" if hostnames and hostnames[0] else node_id[:8]


def _consent(args: argparse.Namespace, what: str) -> None:
    """Say what happens, and ask unless ``--yes``.

    Raises:
        CommandError: Nobody can be asked, or they said no.
    """
    talk(f"{what}. Streams of all clients pause meanwhile, or are lost.")
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise _wrong("nobody can be asked here: say --yes")
    talk("Go on? [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandError("nothing was done", reason="DECLINED")


def _rehearse(args: argparse.Namespace, node_id: str) -> DrillReport:
    from macmesh_daemon.drill.runner import Drill, DrillError, rehearse  # noqa: PLC0415  loads gRPC

    drill = Drill(args.kind, node_id, _PROMPT, args.tokens, args.after, args.timeout)

    async def go() -> DrillReport:
        from macmesh import AsyncClient  # noqa: PLC0415  loads gRPC
        from macmesh_daemon.drill.target import ClientTarget  # noqa: PLC0415  as above

        async with AsyncClient(socket_argument(args)) as client:
            return await rehearse(ClientTarget(client, args.timeout), drill)

    try:
        return asyncio.run(go())
    except DrillError as error:
        raise CommandError(str(error), reason="NOT_READY") from error


def _wrong(message: str) -> CommandError:
    return CommandError(message, exit_code=exit_codes.USAGE, reason="INVALID_ARGUMENT")
