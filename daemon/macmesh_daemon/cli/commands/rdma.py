"""`daemonctl rdma`: what this machine remembers of its RDMA devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import settings
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, printable
from macmesh_daemon.cli.parsers import add_command, add_group

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl rdma show             set-ups and queue pairs since the machine was started, and who is in quarantine
daemonctl rdma lift 3f2a91c0    links over RDMA devices to that node may be tried again
daemonctl rdma lift             those to every node
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands."""
    group = add_group(
        subparsers, "rdma", summary="what this machine remembers of its RDMA devices", examples=_EXAMPLES
    )
    _add(group, "show", "set-ups since the machine was started, and the nodes in quarantine", run_show)
    lift = _add(
        group, "lift", "end the quarantine of links over RDMA devices, as this machine keeps it", run_lift
    )
    lift.add_argument(
        "node", nargs="?", default="", metavar="NODE", help="the beginning of a node id (default all)"
    )


def _add(
    group: Subparsers, name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    examples = "\n".join(line for line in _EXAMPLES.strip().splitlines() if f"rdma {name}" in line)
    parser = add_command(
        group, name, summary=summary, examples=examples, run=run, daemon=False, form=f"rdma-{name}"
    )
    parser.add_argument(
        "--data-dir", metavar="FOLDER", help="data folder of the node (default: as configured)"
    )
    return parser


def run_show(args: argparse.Namespace) -> int:
    """Print what this machine's files say."""
    import asyncio  # noqa: PLC0415  as late as everything a command needs
    from dataclasses import asdict  # noqa: PLC0415  same

    from macmesh_daemon.node.verbs_keeper import QUARANTINE_FILE_NAME  # noqa: PLC0415  same
    from macmesh_rdma.quarantine_file import read_entries  # noqa: PLC0415  same
    from macmesh_rdma.verbs.boot_counts import FILE_NAME, boot_id, read_counts  # noqa: PLC0415  same

    config = settings(args.data_dir)
    counts = read_counts(config.data_dir / FILE_NAME, asyncio.run(boot_id()))
    path = config.data_dir / QUARANTINE_FILE_NAME
    try:
        entries = {node_id: str(entry["reason"]) for node_id, entry in read_entries(path).items()}
    except OSError as error:
        raise CommandError(f"{path}: {error}", reason="FILE") from error
    if args.json:
        print_json(args, {**asdict(counts), "bound": config.verbs_setups_per_boot, "quarantined": entries})
        return exit_codes.OK
    print_data(
        f"set-ups since the machine was started: {counts.setups} of {config.verbs_setups_per_boot}, "
        f"{counts.queue_pairs_made} queue pairs made, {counts.queue_pairs_freed} freed"
    )
    for node_id, reason in entries.items():
        print_data(f"{node_id[:8]} is in quarantine: {printable(reason)}")
    if not entries:
        print_data("no node is in quarantine")
    return exit_codes.OK


def run_lift(args: argparse.Namespace) -> int:
    """Remove entries of the file; the daemon looks at it within a minute."""
    from macmesh_daemon.node.verbs_keeper import QUARANTINE_FILE_NAME  # noqa: PLC0415  as late as possible
    from macmesh_rdma.quarantine_file import (  # noqa: PLC0415  same
        LocalQuarantineFileError,
        read_entries,
        remove_entry,
    )

    path = settings(args.data_dir).data_dir / QUARANTINE_FILE_NAME
    try:
        try:
            entries = read_entries(path)
        except LocalQuarantineFileError:
            # Nobody knows what it said. The daemon refuses all of it until it is gone.
            path.unlink()
            entries = {}
        lifted = {
            node_id: str(entry["reason"])
            for node_id, entry in entries.items()
            if node_id.startswith(args.node)
        }
        for node_id in lifted:
            remove_entry(path, node_id)
    except OSError as error:
        raise CommandError(f"{path}: {error}", reason="FILE") from error
    if args.node and not lifted:
        raise CommandError(
            f"no node that begins with {args.node} is in quarantine in {path}", reason="NOT_FOUND"
        )
    if args.json:
        print_json(args, {"file": str(path), "lifted": lifted})
        return exit_codes.OK
    for node_id, reason in lifted.items():
        print_data(f"{node_id[:8]} is out of quarantine; it was there because {printable(reason)}")
    if not lifted:
        print_data("no node is in quarantine")
    return exit_codes.OK
