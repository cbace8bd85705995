"""`daemonctl watch`: the cluster's decisions as they happen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.output import print_data, print_json, printable
from macmesh_daemon.cli.parsers import add_command, positive

if TYPE_CHECKING:
    import argparse

    from macmesh import ClusterEvent, ClusterStatus
    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl watch               one line per decision, until Ctrl-C
daemonctl watch --json        one JSON object per line
daemonctl watch --count 1     the state now, then end
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "watch",
        summary="follow the cluster's decisions as they happen",
        examples=_EXAMPLES,
        run=run,
    )
    parser.add_argument(
        "--count", type=positive, metavar="N", help="end after so many updates (default: until Ctrl-C)"
    )


def run(args: argparse.Namespace) -> int:
    """Follow until interrupted, or until the daemon ends the stream."""
    with connect(args) as client, client.watch() as updates:
        for number, update in enumerate(updates, start=1):
            if args.json:
                print_json(args, _as_json(update), indent=None)
            else:
                print_data(_as_line(update))
            if number == args.count:
                break
    return exit_codes.OK


def _as_json(update: ClusterStatus | ClusterEvent) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415  only the JSON form needs it
    from google.protobuf.message import Message  # noqa: PLC0415  as above

    if isinstance(update, Message):
        status = MessageToDict(
            update, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return {"status": status}
    return {"time": update.time.isoformat(), "event": update.event, "facts": dict(update.facts)}


def _as_line(update: ClusterStatus | ClusterEvent) -> str:
    from google.protobuf.message import Message  # noqa: PLC0415  loaded by the client already

    if isinstance(update, Message):
        alive = sum(node.liveness == "alive" for node in update.nodes)
        quorum = "quorum" if update.has_quorum else "NO QUORUM"
        return (
            f"# {update.serving_state} · term {update.term} · {alive} of {len(update.nodes)} alive · {quorum}"
        )
    facts = "  ".join(f"{key}={_plain(value)}" for key, value in update.facts.items())
    clock = update.time.astimezone().strftime("%H:%M:%S")
    return printable(f"{clock} {update.event}  {facts}").rstrip()


def _plain(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text else text
