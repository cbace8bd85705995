"""From an error to an exit code and a message."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from macmesh.errors import LocalArgumentError, LocalDaemonNotRunningError, MacmeshError
from macmesh.reasons import Reason
from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.output import print_json, printable, talk

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


class CommandError(Exception):
    """A command cannot go on: what happened and what to do.

    Attributes:
        message: For people.
        reason: UPPER_SNAKE, as in `macmesh.reasons`.
        exit_code: See `macmesh_daemon.cli.exit_codes`.
    """

    def __init__(self, message: str, *, reason: str = "FAILED", exit_code: int = exit_codes.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.exit_code = exit_code


def exit_code_of(error: MacmeshError) -> int:
    """The exit code of an error of the SDK."""
    if isinstance(error, LocalDaemonNotRunningError):
        return exit_codes.NOT_RUNNING
    if isinstance(error, LocalArgumentError):
        return exit_codes.USAGE
    if error.reason == Reason.NO_QUORUM:
        return exit_codes.DEGRADED
    return exit_codes.TRY_AGAIN if error.is_transient else exit_codes.FAILED


def run_guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command; errors become a message on stderr, with ``--json`` an object on stdout too, and a code.

    A reader of stdout that goes away (``| head``) ends the command in order, with 0.
    """
    try:
        return run(args)
    except KeyboardInterrupt:
        talk("interrupted")
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except MacmeshError as error:
        return _report(args, error.message, error.code, error.reason, error.metadata, exit_code_of(error))
    except CommandError as error:
        return _report(args, error.message, "", error.reason, {}, error.exit_code)


def _report(
    args: argparse.Namespace, message: str, code: str, reason: str, metadata: dict[str, str], exit_code: int
) -> int:
    talk(f"daemonctl: {printable(message)}")
    if exit_code == exit_codes.TRY_AGAIN:
        talk("daemonctl: this may pass: try again")
    if args.json:
        facts = {"code": code, "reason": reason, "message": message, "metadata": metadata}
        try:
            print_json(args, {"error": facts})
        except BrokenPipeError:
            _reader_gone()
    return exit_code


def _reader_gone() -> int:
    """Nothing more can be written: keep the interpreter from complaining about it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return exit_codes.OK
