"""`daemonctl`: sees and changes a cluster from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.registry import COMMANDS, Command, find

if TYPE_CHECKING:
    from macmesh_daemon.cli.parsers import Subparsers

_DESCRIPTION = """See and change a macmesh cluster.

examples:
  daemonctl demo                                    the whole thing on this machine
  daemonctl status                                  one line per node
  daemonctl load ~/models/Qwen3-4B --context 32768  serve a model
  daemonctl generate "Once upon a time"             stream text
"""

_EPILOG = """exit codes: 0 ok, 1 failed, 2 usage, 3 daemon not running, 4 degraded, 75 try again, 130 interrupted
`daemonctl COMMAND --help` says more.
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code. Only the chosen command's module is imported."""
    argv = sys.argv[1:] if argv is None else argv
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = build_parser(find(chosen) if chosen else None)
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return exit_codes.USAGE
    from macmesh_daemon.cli.failures import run_guarded  # noqa: PLC0415  --help does without

    return run_guarded(args.run, args)


def build_parser(chosen: Command | None = None, *, everything: bool = False) -> argparse.ArgumentParser:
    """The parser; in full for the chosen command, or for all of them, and by name only for the rest."""
    parser = argparse.ArgumentParser(
        prog="daemonctl",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers: Subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    for command in COMMANDS:
        if everything or command == chosen:
            import_module(f"macmesh_daemon.cli.commands.{command.module}").add_parser(subparsers)
        else:
            subparsers.add_parser(command.name, help=command.summary, add_help=False)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415  slow, and rarely asked for

        sys.stdout.write(f"daemonctl {version('macmesh')}{os.linesep}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
