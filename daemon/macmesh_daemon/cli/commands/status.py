"""`daemonctl status`: the cluster at a glance."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.output import print_data, print_json, terminal_width, wants_color
from macmesh_daemon.cli.parsers import add_command, amount

if TYPE_CHECKING:
    import argparse

    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl status                               one line per node, health on top
daemonctl status --json | jq .serving_state    for programs
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "status",
        summary="the cluster at a glance: one line per node",
        examples=_EXAMPLES,
        run=run,
    )
    parser.add_argument(
        "--timeout",
        type=amount,
        default=5.0,
        metavar="SECONDS",
        help="longest wait for the daemon (default 5)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the status; DEGRADED where a node of the plan or the quorum is missing."""
    with connect(args) as client:
        status = client.status(timeout_seconds=args.timeout)
    if args.json:
        from google.protobuf.json_format import MessageToDict  # noqa: PLC0415  only the JSON form needs it

        print_json(
            args,
            MessageToDict(
                status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            ),
        )
    else:
        from macmesh_daemon.cli.status_view import render_status  # noqa: PLC0415  only people need it

        color = wants_color(args, sys.stdout)
        print_data(render_status(status, terminal_width(sys.stdout), color=color))
    is_cut_short = status.serving_state == "refused" and bool(status.document.plan.deployments)
    degraded = status.serving_state == "degraded" or is_cut_short or not status.has_quorum
    return exit_codes.DEGRADED if degraded else exit_codes.OK
