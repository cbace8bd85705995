"""Parsers of `daemonctl`: one look for every command's help, and the options that all share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

#: What ``add_subparsers`` returns; argparse has no public name for it.
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  as said


def add_command(
    subparsers: Subparsers,
    name: str,
    *,
    summary: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    daemon: bool = True,
    form: str | None = None,
) -> argparse.ArgumentParser:
    """Add a command with the shared options.

    Args:
        subparsers: Where to add it.
        name: As typed.
        summary: One line; the help starts with it, then come the examples.
        examples: One ``command    what it does`` per line.
        run: Called with the parsed arguments.
        daemon: It talks to the daemon: it takes ``--socket``.
        form: Name in ``"format": "daemonctl-<form>/1"``; the command's name by default.
    """
    lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\nexamples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    form = form or name
    parser.set_defaults(run=run, form=form)
    shared = parser.add_argument_group("shared options")
    shared.add_argument(
        "--json", action="store_true", help=f'print one JSON object with "format": "daemonctl-{form}/1"'
    )
    shared.add_argument("--no-color", action="store_true", help="no colours (also: NO_COLOR, TERM=dumb)")
    if daemon:
        shared.add_argument(
            "--socket",
            metavar="PATH",
            help="socket of the daemon (default: MACMESH_SOCKET, or the user's own)",
        )
    return parser


def add_group(subparsers: Subparsers, name: str, *, summary: str, examples: str) -> Subparsers:
    """Add a command that only holds commands of its own, such as ``cluster``."""
    lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\nexamples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser.add_subparsers(metavar="COMMAND", title="commands", required=True)


def natural(text: str) -> int:
    """An argument that is a whole number of at least 0; thousands may be parted by commas or underscores."""
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return value


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1")
    return value


def _whole(text: str) -> int:
    try:
        return int(text.replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def share(text: str) -> float:
    """An argument between 0 and 1."""
    value = amount(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return value


def below_one(text: str) -> float:
    """An argument from 0 to below 1."""
    value = amount(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not below 1")
    return value


def amount(text: str) -> float:
    """An argument that is a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def add_demand(parser: argparse.ArgumentParser) -> None:
    """Add what `plan` and `load` ask for."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model folder, a name below a models folder, or organisation/model on a hub",
    )
    parser.add_argument(
        "--context",
        type=natural,
        default=0,
        metavar="N",
        help="tokens of context to guarantee (default: the model's position limit)",
    )
    parser.add_argument("--slots", type=positive, default=1, metavar="N", help="requests at once (default 1)")
    parser.add_argument(
        "--objective",
        choices=("latency", "throughput", "balanced"),
        default="balanced",
        help="what to be best at (default balanced)",
    )
    parser.add_argument(
        "--stages", type=positive, default=0, metavar="N", help="stages to use (default: the planner chooses)"
    )


def add_kv_bits(parser: argparse.ArgumentParser) -> None:
    """Add the bits of a quantised cache."""
    parser.add_argument(
        "--kv-bits",
        type=int,
        choices=(4, 8),
        default=0,
        help="bits of a quantised cache (default: the model's own type)",
    )


def add_tensor_parallel(parser: argparse.ArgumentParser) -> None:
    """Add the split of every layer."""
    parser.add_argument(
        "--tensor-parallel",
        action="store_true",
        help="splitting every layer over equal nodes is a candidate too",
    )


def add_transfers(parser: argparse.ArgumentParser) -> None:
    """Add how decode steps go from stage to stage."""
    parser.add_argument(
        "--transfers",
        choices=("auto", "host", "graph"),
        default="auto",
        help="how decode steps go from stage to stage: inside MLX's graphs, one step ahead, or by the host "
        "(default auto: what is faster on these machines)",
    )


def model_argument(text: str) -> str:
    """MODEL as the daemon should see it: a folder here becomes its absolute path, a name stays one."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.is_dir() else text
