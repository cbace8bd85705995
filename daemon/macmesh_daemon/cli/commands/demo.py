"""`daemonctl demo`: a throw-away cluster on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.cli.parsers import add_command, amount, positive

if TYPE_CHECKING:
    import argparse

    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl demo               three daemons find each other, elect, plan, load and generate
daemonctl demo --no-mdns     with static seeds, where multicast is blocked
daemonctl demo --transport verbs   over links of our own on stand-ins for RDMA devices
daemonctl demo --json        the same as one JSON object
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "demo",
        summary="a throw-away cluster on this machine, from discovery to text",
        examples=_EXAMPLES,
        run=run,
        daemon=False,
    )
    parser.add_argument("--nodes", type=positive, default=3, metavar="N", help="daemons to start (default 3)")
    parser.add_argument(
        "--tokens", type=positive, default=64, metavar="N", help="most tokens to generate (default 64)"
    )
    parser.add_argument("--model", metavar="FOLDER", help="a model folder instead of the shipped small model")
    parser.add_argument("--no-mdns", action="store_true", help="find each other by static seeds only")
    parser.add_argument(
        "--transport",
        choices=("auto", "shm", "tcp", "verbs"),
        default="auto",
        help="what carries the arrays between the stages (default auto); verbs goes over stand-ins for RDMA devices",
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and state behind")
    parser.add_argument(
        "--timeout", type=amount, default=170.0, metavar="SECONDS", help="for the whole demo (default 170)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    from macmesh_daemon.cli import demo  # noqa: PLC0415  loads half of the daemon

    return demo.run(args)
