"""Checks the cluster's invariants over the event logs of its nodes: ``python -m macmesh_daemon.eventcheck LOG...``.

A LOG is the data folder of a node, its ``events`` folder, or one file. Prints every violation with the records
that show it (node, incarnation and position). Exit code 0: all holds; 1: an invariant is broken; 2: a log cannot
be read. `daemonctl events --check` does the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from macmesh_daemon.eventlog.checks import check
from macmesh_daemon.eventlog.errors import EventLogError
from macmesh_daemon.eventlog.reader import read_logs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from macmesh_daemon.eventlog.checks import Verdict


def describe(verdict: Verdict) -> str:
    """One line of what was checked."""
    return (
        f"{verdict.records} records of {verdict.nodes} nodes: {verdict.terms} terms, {verdict.epochs} epochs, "
        f"{verdict.requests} requests: "
        + (f"{len(verdict.violations)} violations" if verdict.violations else "every invariant holds")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the logs that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m macmesh_daemon.eventcheck",
        description="Check the cluster's invariants over the event logs of its nodes.",
    )
    parser.add_argument("logs", metavar="LOG", nargs="+", type=Path, help="a node's data folder, or a file")
    args = parser.parse_args(arguments)
    try:
        verdict = check(read_logs(args.logs))
    except (EventLogError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for violation in verdict.violations:
        sys.stdout.write(f"{violation}\n")
    for gap in verdict.gaps:
        sys.stderr.write(f"{gap}\n")
    sys.stdout.write(f"{describe(verdict)}\n")
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
