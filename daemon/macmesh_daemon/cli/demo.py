"""The body of `daemonctl demo`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from macmesh import MacmeshError
from macmesh_daemon.demo.errors import DemoError
from macmesh_daemon.demo.scenario import DemoOptions, Talk, run_demo

if TYPE_CHECKING:
    import argparse

    from macmesh import ClusterStatus
    from macmesh_daemon.demo.report import DemoReport


def run(args: argparse.Namespace) -> int:
    """Run the demo and print what it saw; 0 where the tokens are identical, 1 otherwise."""
    options = DemoOptions(
        nodes=args.nodes,
        tokens=args.tokens,
        mdns=not args.no_mdns,
        keep=args.keep,
        timeout_seconds=args.timeout,
        transport=args.transport,
        model_folder=Path(args.model).expanduser().absolute() if args.model else None,
    )
    try:
        report = asyncio.run(run_demo(options, _quiet() if args.json else _aloud()))
    except TimeoutError:
        sys.stderr.write(f"demo: not done within {args.timeout:.0f} s\n")
        return 1
    except (DemoError, MacmeshError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    if args.json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    else:
        sys.stdout.write(_summary(report))
    return 0 if report.identical else 1


def _aloud() -> Talk:
    def say(line: str) -> None:
        sys.stdout.write(f"* {line}\n")
        sys.stdout.flush()

    def text(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    return Talk(say=say, show=_show, text=text)


def _quiet() -> Talk:
    def say(line: str) -> None:
        sys.stderr.write(f"* {line}\n")

    return Talk(say=say, show=lambda _status: None, text=lambda _piece: None)


def _show(status: ClusterStatus) -> None:
    from macmesh_daemon.cli.status_view import render_status  # noqa: PLC0415  the JSON form does not need it

    sys.stdout.write("\n" + render_status(status) + "\n\n")


def _summary(report: DemoReport) -> str:
    steps = ("discovered", "elected", "planned", "ready", "first_token", "done")
    times = "  ".join(f"{name} {report.seconds[name]:.1f}" for name in steps if name in report.seconds)
    return (
        f"\nseconds since the start of the daemons: {times}\n"
        f"{report.tokens} tokens, {report.tokens_per_second:.1f}/s over {report.stages} stages"
        f"{' by ' + '+'.join(report.providers) if report.providers else ''}; "
        f"single-process mlx-lm {report.reference_tokens_per_second:.1f}/s\n"
        f"identical to single-process mlx-lm: {'yes' if report.identical else 'no'}\n"
    )
