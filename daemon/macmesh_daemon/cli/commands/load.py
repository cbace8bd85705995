"""`daemonctl load`: serve a model, with progress."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes, units
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.output import print_data, print_json, talk
from macmesh_daemon.cli.parsers import add_command, add_demand, add_kv_bits, amount, model_argument

if TYPE_CHECKING:
    import argparse

    from macmesh import LoadProgress
    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl load ~/models/Qwen3-4B --context 32768     serve it, at a context that is guaranteed to fit
daemonctl load Qwen3-4B --slots 4                    a name below a models folder, four requests at once
daemonctl load Qwen3-4B --kv-bits 8                  caches of half the bytes; its requests decode one by one
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(subparsers, "load", summary="serve a model", examples=_EXAMPLES, run=run)
    add_demand(parser)
    add_kv_bits(parser)
    parser.add_argument(
        "--timeout",
        type=amount,
        default=3600.0,
        metavar="SECONDS",
        help="longest wait until it is ready (default 3600); the load goes on after it",
    )


def run(args: argparse.Namespace) -> int:
    """Load and wait until every stage is ready."""
    progress = _Progress()
    with connect(args) as client:
        try:
            last = client.load(
                model_argument(args.model),
                context_tokens=args.context,
                slots=args.slots,
                objective=args.objective,
                stage_count=args.stages,
                kv_bits=args.kv_bits,
                on_progress=progress.tell,
                timeout_seconds=args.timeout,
            )
        finally:
            progress.end()
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
                "stages": stages,
            },
        )
    else:
        print_data(f"ready: {model}, epoch {last.epoch}")
        talk("`daemonctl status` shows it, `daemonctl generate TEXT` uses it")
    return exit_codes.OK


class _Progress:
    """Progress on stderr: one line per phase; on a terminal the line of the weights is rewritten in place."""

    def __init__(self) -> None:
        self._told = ""
        self._rewriting = False
        self._terminal = sys.stderr.isatty()

    def tell(self, step: LoadProgress) -> None:
        """Show a step."""
        if step.phase == "loading" and self._terminal and step.total_bytes:
            done, total = units.size(step.loaded_bytes), units.size(step.total_bytes)
            share = 100 * step.loaded_bytes // step.total_bytes
            sys.stderr.write(f"\r\x1b[Kloading {share}% ({done} of {total})")
            sys.stderr.flush()
            self._rewriting = True
            self._told = step.phase
            return
        if step.phase != self._told:
            self.end()
            self._told = step.phase
            talk(f"{step.phase}: {_stages(step)}" if step.phase == "committed" else step.phase)

    def end(self) -> None:
        """Leave the line that is being rewritten."""
        if self._rewriting:
            self._rewriting = False
            talk("")


def _stages(step: LoadProgress) -> str:
    if step.deployment is None:
        return f"epoch {step.epoch}"
    parts = [f"{s.node_id[:8]} layers {s.first_layer}-{s.end_layer - 1}" for s in step.deployment.stages]
    return f"epoch {step.epoch}, {', '.join(parts)}"
