"""`daemonctl plan`: a dry run, with the daemon's cluster or one that a file describes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, terminal_width, wants_color
from macmesh_daemon.cli.parsers import add_command, add_demand, model_argument

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from macmesh_daemon.cli.parsers import Subparsers
    from macmesh_placement import Placement, Refusal

_EXAMPLES = """
daemonctl plan ~/models/Qwen3-4B --context 32768                       with the cluster as it is
daemonctl plan MiniMax.profile.json --cluster cluster.json             for a cluster in a file, without any daemon
daemonctl plan MiniMax.profile.json --cluster cluster.json --ledger    to the byte
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "plan",
        summary="how a model would be spread, without changing anything",
        examples=_EXAMPLES,
        run=run,
    )
    add_demand(parser)
    parser.add_argument(
        "--cluster",
        metavar="FILE",
        help="plan for the cluster in this JSON file, without a daemon; MODEL is a folder or a *.profile.json",
    )
    parser.add_argument("--ledger", action="store_true", help="every line of every stage's ledger, in bytes")


def run(args: argparse.Namespace) -> int:
    """Print the plan, or the refusal with FAILED."""
    if args.cluster:
        from macmesh_daemon.cli.offline_plan import plan_offline  # noqa: PLC0415  loads the planner

        result, names = plan_offline(args)
    else:
        result, names = _ask_daemon(args)
    from macmesh_placement import Placement  # noqa: PLC0415  loaded above

    if args.json:
        print_json(args, {**result.to_json(), "names": dict(names)})
    else:
        from macmesh_daemon.cli.plan_view import render_plan, render_refusal  # noqa: PLC0415  as above

        color = wants_color(args, sys.stdout)
        if isinstance(result, Placement):
            width = terminal_width(sys.stdout)
            print_data(render_plan(result, names, width, color=color, ledger=args.ledger))
        else:
            print_data(render_refusal(result, names, color=color))
    return exit_codes.OK if result.feasible else exit_codes.FAILED


def _ask_daemon(args: argparse.Namespace) -> tuple[Placement | Refusal, Mapping[str, str]]:
    from macmesh_placement import LocalPlacementError, result_from_json  # noqa: PLC0415  loads the planner

    with connect(args) as client:
        answer = client.plan(
            model_argument(args.model),
            context_tokens=args.context,
            slots=args.slots,
            objective=args.objective,
            stage_count=args.stages,
        )
        status = client.status()
    names = {n.member.node_id: n.member.facts.hostname for n in status.nodes}
    try:
        return result_from_json(json.dumps(answer.result)), names
    except LocalPlacementError as error:
        raise CommandError(f"the daemon's plan cannot be read: {error}", reason="INTERNAL") from error
