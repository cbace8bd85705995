"""`daemonctl load`: serve a model, with progress."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.load_view import LiveBlock, PlainLines
from macmesh_daemon.cli.output import encodable, print_data, print_json, talk, terminal_width, wants_color
from macmesh_daemon.cli.parsers import (
    add_command,
    add_demand,
    add_kv_bits,
    add_tensor_parallel,
    add_transfers,
    amount,
    model_argument,
)

if TYPE_CHECKING:
    import argparse

    from macmesh import LoadProgress
    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl load ~/models/Qwen3-4B --context 32768     serve it, at a context that is guaranteed to fit
daemonctl load Qwen3-4B --slots 4                    a name below a models folder, four requests at once
daemonctl load mlx-community/Qwen3-4B-4bit           of a hub, where no node has it; downloaded once
daemonctl load Qwen3-4B --kv-bits 8                  caches of half the bytes; its requests decode one by one
daemonctl load Qwen3-4B --tensor-parallel            every layer split over equal nodes, where that is faster
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(subparsers, "load", summary="serve a model", examples=_EXAMPLES, run=run)
    add_demand(parser)
    add_kv_bits(parser)
    add_tensor_parallel(parser)
    add_transfers(parser)
    parser.add_argument(
        "--timeout",
        type=amount,
        default=3600.0,
        metavar="SECONDS",
        help="longest wait until it is ready (default 3600); the load goes on after it",
    )


def run(args: argparse.Namespace) -> int:
    """Load and wait until every stage is ready."""
    progress = _Progress(color=wants_color(args, sys.stderr))
    with connect(args) as client:
        last = client.load(
            model_argument(args.model),
            context_tokens=args.context,
            slots=args.slots,
            objective=args.objective,
            stage_count=args.stages,
            kv_bits=args.kv_bits,
            allow_tensor_parallel=args.tensor_parallel,
            transfers=args.transfers,
            on_progress=progress.tell,
            timeout_seconds=args.timeout,
        )
    plan = last.deployment
    model = plan.model.model_id if plan else args.model
    if args.json:
        stages = [
            {"node_id": s.node_id, "first_layer": s.first_layer, "end_layer": s.end_layer}
            for s in (plan.stages if plan else ())
        ]
        context = plan.context_tokens if plan else args.context
        print_json(
            args,
            {
                "ready": True,
                "model_id": model,
                "epoch": last.epoch,
                "context_tokens": context,
                "kv_bits": plan.kv_bits if plan else args.kv_bits,
                "parallelism": (plan.parallelism if plan else "") or "pipeline",
                "parallelism_reason": plan.parallelism_reason if plan else "",
                "stages": stages,
            },
        )
    else:
        print_data(f"ready: {model}, epoch {last.epoch}")
        if plan and plan.parallelism_reason:
            talk(f"not split layer by layer: {plan.parallelism_reason}")
        talk("`daemonctl status` shows it, `daemonctl generate TEXT` uses it")
    return exit_codes.OK


class _Progress:
    """Progress on stderr: lines; on a terminal a bar for each stage, which is drawn anew in place."""

    def __init__(self, *, color: bool) -> None:
        self._plain = PlainLines()
        self._live = LiveBlock(color=color)

    def tell(self, step: LoadProgress) -> None:
        """Show a step."""
        columns = terminal_width(sys.stderr)
        if columns is None:
            for line in self._plain.of(step):
                talk(line)
        elif text := self._live.of(step, columns):
            talk(encodable(text, sys.stderr.encoding), end="")
