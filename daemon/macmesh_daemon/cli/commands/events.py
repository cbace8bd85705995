"""`daemonctl events`: what a node did, from its event log, and whether several nodes' logs keep the invariants."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import settings
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, printable, talk
from macmesh_daemon.cli.parsers import add_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from macmesh_daemon.cli.parsers import Subparsers
    from macmesh_daemon.eventlog import Record

_EXAMPLES = """
daemonctl events                          what this machine's node did, oldest first
daemonctl events --follow --since 10m     the last ten minutes, and whatever comes, until Ctrl-C
daemonctl events ./a ./b --node studio    of two nodes' data folders or log files, one node's
daemonctl events --check ./a ./b ./c      whether a run of three nodes kept the cluster's invariants
"""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: How often `--follow` looks for more, as ``tail -f`` does.
_LOOK_SECONDS = 0.25


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "events",
        summary="what a node did, and whether the invariants held",
        examples=_EXAMPLES,
        run=run,
        daemon=False,
    )
    parser.add_argument(
        "logs",
        nargs="*",
        metavar="LOG",
        help="a node's data folder, or a file of its log (default: this node's)",
    )
    parser.add_argument(
        "--check", action="store_true", help="check the cluster's invariants; exit code 1 where one is broken"
    )
    parser.add_argument("--follow", action="store_true", help="go on as more is written, until Ctrl-C")
    parser.add_argument(
        "--since", metavar="AGE", type=_age_seconds, help="only what is younger: 90s, 10m, 2h or 1d"
    )
    parser.add_argument("--node", metavar="NODE", default="", help="only the node whose id begins so")


def run(args: argparse.Namespace) -> int:
    """Print the records, or check them."""
    from macmesh_daemon.eventlog import EventLogError  # noqa: PLC0415  as late as everything a command needs

    places = [Path(place).expanduser() for place in args.logs] or [settings().data_dir]
    try:
        return _check(args, places) if args.check else _show(args, places)
    except FileNotFoundError as error:
        raise CommandError(str(error), reason="NOT_FOUND") from error
    except (EventLogError, OSError) as error:
        raise CommandError(str(error), reason="EVENT_LOG") from error


def _check(args: argparse.Namespace, places: Sequence[Path]) -> int:
    from macmesh_daemon.eventcheck import describe  # noqa: PLC0415  only this needs it
    from macmesh_daemon.eventlog.checks import check  # noqa: PLC0415  as above
    from macmesh_daemon.eventlog.reader import read_logs  # noqa: PLC0415  as above

    verdict = check(read_logs(places))
    if args.json:
        violations = [
            {"invariant": v.invariant, "what": v.what, "records": [_as_json(record) for record in v.records]}
            for v in verdict.violations
        ]
        print_json(
            args,
            {
                "ok": not verdict.violations,
                "violations": violations,
                "gaps": list(verdict.gaps),
                "records": verdict.records,
                "nodes": verdict.nodes,
                "terms": verdict.terms,
                "epochs": verdict.epochs,
                "requests": verdict.requests,
            },
        )
    else:
        for violation in verdict.violations:
            print_data(printable(str(violation)))
        for gap in verdict.gaps:
            talk(gap)
        print_data(describe(verdict))
    return exit_codes.FAILED if verdict.violations else exit_codes.OK


def _show(args: argparse.Namespace, places: Sequence[Path]) -> int:
    oldest = time.time() - args.since if args.since is not None else 0.0
    for record in _records(places, follow=args.follow):
        if record.wall < oldest or not record.node.startswith(args.node):
            continue
        if args.json:
            print_json(args, _as_json(record), indent=None)
        else:
            print_data(as_line(record))
    return exit_codes.OK


def _records(
    places: Sequence[Path], *, follow: bool, pause: Callable[[float], None] = time.sleep
) -> Iterator[Record]:
    """All records in the order of their wall clocks; with `follow`, then those that are written later."""
    from macmesh_daemon.eventlog.reader import Tail  # noqa: PLC0415  only this command needs it

    tails = [Tail(place) for place in places]
    while True:
        new = [record for tail in tails for record in tail.read()]
        yield from sorted(new, key=lambda r: (r.wall, r.node, r.incarnation, r.seq))
        if not follow:
            return
        pause(_LOOK_SECONDS)


def as_line(record: Record) -> str:
    """A record for people."""
    clock = time.strftime("%m-%d %H:%M:%S", time.localtime(record.wall))
    facts = dict(record.facts)
    what = record.kind
    if record.kind == "announced":
        what = str(facts.pop("event", ""))
        facts = dict(facts.get("facts") or {})
    told = "  ".join(
        f"{key}={_plain(key, value)}" for key, value in facts.items() if value not in (None, "", [])
    )
    millis = int(record.wall % 1 * 1000)
    return printable(f"{clock}.{millis:03d} {record.name:16} {what}  {told}").rstrip()


def _plain(key: str, value: Any) -> str:
    if isinstance(value, list):
        if value and all(isinstance(item, int) for item in value):
            return ".".join(map(str, value))
        return ",".join(_plain(key, item) for item in value)
    text = str(value)
    if len(text) == 26 and text.isalnum() and key != "model":  # noqa: PLR2004  the length of a node id
        return text[:8]
    return repr(text) if " " in text else text


def _as_json(record: Record) -> dict[str, Any]:
    return {
        "node": record.node,
        "incarnation": record.incarnation,
        "seq": record.seq,
        "time_unix_seconds": record.wall,
        "monotonic_seconds": record.mono,
        "kind": str(record.kind),
        "facts": dict(record.facts),
    }


def _age_seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age such as 90s, 10m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]
