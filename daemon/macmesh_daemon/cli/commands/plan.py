"""`daemonctl plan`: a dry run, with the daemon's cluster or one that a file describes."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import encodable, print_data, print_json, talk, terminal_width, wants_color
from macmesh_daemon.cli.parsers import (
    add_command,
    add_demand,
    add_kv_bits,
    add_tensor_parallel,
    below_one,
    natural,
    positive,
)

if TYPE_CHECKING:
    import argparse

    from macmesh_daemon.cli.daemon_plan import DaemonPlanner
    from macmesh_daemon.cli.offline_plan import OfflinePlanner
    from macmesh_daemon.cli.parsers import Subparsers
    from macmesh_daemon.cli.plan_answer import Answer

_EXAMPLES = """
daemonctl plan ~/models/Qwen3-4B --context 32768                       with the cluster as it is
daemonctl plan MiniMax.profile.json --cluster cluster.json             for a cluster in a file, without any daemon
daemonctl plan MiniMax.profile.json --cluster cluster.json --explain   why this plan, and what lost
daemonctl plan MiniMax.profile.json --cluster cluster.json --ledger    to the byte
daemonctl plan Qwen3-4B --exclude laptop --head studio --kv-bits 8     what would be if
daemonctl plan MiniMax.profile.json --cluster cluster.json --plot p.png  speed and headroom against context
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
        help="plan for the cluster in this JSON file, without a daemon; MODEL is a folder, a *.profile.json or"
        " owner/name on a hub",
    )
    _add_wishes(parser)
    parser.add_argument(
        "--explain", action="store_true", help="the certificate, and the plans that lost with the reason"
    )
    parser.add_argument("--ledger", action="store_true", help="every line of every stage's ledger, in bytes")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="also draw predicted tokens/s and headroom against context into this PNG (needs macmesh[plot])",
    )


def _add_wishes(parser: argparse.ArgumentParser) -> None:
    """Add what only a dry run can be asked."""
    node = "by its name or the beginning of its id"
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="NODE",
        help=f"leave this node out, {node}; may be repeated",
    )
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="NODE",
        help=f"this node must take part, {node}; may be repeated",
    )
    parser.add_argument("--head", default="", metavar="NODE", help=f"the node of the first stage, {node}")
    parser.add_argument("--tail", default="", metavar="NODE", help=f"the node of the last stage, {node}")
    parser.add_argument(
        "--decode-context",
        type=natural,
        default=0,
        metavar="N",
        help="tokens in the cache at the predicted token (default: the whole context)",
    )
    parser.add_argument(
        "--prefill-share",
        type=below_one,
        default=0.0,
        metavar="F",
        help="share of prompt tokens among all tokens, 0 to below 1 (default 0)",
    )
    add_kv_bits(parser)
    parser.add_argument(
        "--chunk",
        type=positive,
        default=0,
        metavar="N",
        help="most prompt tokens of one prefill step (default: the node's setting; offline 1024)",
    )
    add_tensor_parallel(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan, or the refusal with FAILED."""
    if args.plot:
        from macmesh_daemon.cli.plot import require_matplotlib  # noqa: PLC0415  only --plot needs it

        require_matplotlib()
    with nullcontext() if args.cluster else connect(args) as client:
        planner: DaemonPlanner | OfflinePlanner
        if client is None:
            from macmesh_daemon.cli.offline_plan import OfflinePlanner  # noqa: PLC0415  loads the planner

            planner = OfflinePlanner(args)
        else:
            from macmesh_daemon.cli.daemon_plan import DaemonPlanner  # noqa: PLC0415  as above

            planner = DaemonPlanner(client, args)
        answer = planner.answer(explain=args.explain)
        if args.plot:
            _plot(args, planner, answer)
    if args.json:
        print_json(args, {**answer.body, "names": dict(answer.names)})
    else:
        print_data(encodable(_text(args, answer), sys.stdout.encoding))
    return exit_codes.OK if answer.result.feasible else exit_codes.FAILED


def _text(args: argparse.Namespace, answer: Answer) -> str:
    from macmesh_daemon.cli.plan_explain import (  # noqa: PLC0415  as in `run`
        render_alternatives,
        render_certificate,
        render_refusal,
    )
    from macmesh_daemon.cli.plan_view import render_ledger, render_plan  # noqa: PLC0415  as above
    from macmesh_placement import Placement  # noqa: PLC0415  as above

    color, width, result = wants_color(args, sys.stdout), terminal_width(sys.stdout), answer.result
    if isinstance(result, Placement):
        parts = [render_plan(answer, result, width, color=color)]
        if args.explain:
            parts.append(render_certificate(answer, result, width, color=color))
    else:
        parts = [render_refusal(answer, result, width, color=color)]
    if args.explain:
        parts.append(render_alternatives(answer, width, color=color))
    if args.ledger and isinstance(result, Placement):
        parts.append(render_ledger(result, width, color=color))
    return "\n\n".join(parts)


def _plot(args: argparse.Namespace, planner: DaemonPlanner | OfflinePlanner, answer: Answer) -> None:
    """Draw from 1k to the position limit, or to the context asked for where the model has none."""
    from macmesh_daemon.cli.output import printable  # noqa: PLC0415  beside its use
    from macmesh_daemon.cli.plot import draw  # noqa: PLC0415  only --plot needs it
    from macmesh_daemon.cli.plot_data import curve  # noqa: PLC0415  as above
    from macmesh_placement import Refusal  # noqa: PLC0415  as above

    widest = planner.at(0) if args.context else answer.result
    if isinstance(widest, Refusal) and widest.kind == "needs_context":
        widest = answer.result
    if (
        isinstance(widest, Refusal)
        and widest.position_limit
        and widest.context_tokens > widest.position_limit
    ):
        widest = planner.at(widest.position_limit)
    series = curve(planner.at, widest)
    if series is None:
        why = answer.result.message if isinstance(answer.result, Refusal) else ""
        raise CommandError(f"nothing to plot: no context fits. {why}".strip())
    draw(series, args.plot, title=printable(f"{planner.model} on {planner.cluster}"))
    talk(f"wrote {args.plot}")
