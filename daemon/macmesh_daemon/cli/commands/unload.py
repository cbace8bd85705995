"""`daemonctl unload`: serve nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.output import print_data, print_json
from macmesh_daemon.cli.parsers import add_command

if TYPE_CHECKING:
    import argparse

    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl unload       stop every stage and free its memory
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    add_command(subparsers, "unload", summary="serve nothing", examples=_EXAMPLES, run=run)


def run(args: argparse.Namespace) -> int:
    """Unload and say under which epoch."""
    with connect(args) as client:
        epoch = client.unload()
    if args.json:
        print_json(args, {"epoch": epoch})
    else:
        print_data(f"nothing is served, epoch {epoch}")
    return exit_codes.OK
