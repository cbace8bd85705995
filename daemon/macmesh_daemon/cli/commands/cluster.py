"""`daemonctl cluster`: make a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import settings
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, talk
from macmesh_daemon.cli.parsers import add_command, add_group

if TYPE_CHECKING:
    import argparse

    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl cluster init                       make this machine the first node of a new cluster
daemonctl cluster init --data-dir ./node1    the same for a daemon with a data folder of its own
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    group = add_group(subparsers, "cluster", summary="make a cluster", examples=_EXAMPLES)
    parser = add_command(
        group,
        "init",
        summary="make this machine the first node of a new cluster",
        examples=_EXAMPLES,
        run=run,
        daemon=False,
        form="cluster-init",
    )
    parser.add_argument(
        "--data-dir", metavar="FOLDER", help="data folder of the node (default: as configured)"
    )


def run(args: argparse.Namespace) -> int:
    """Make the cluster's CA and this node's certificate."""
    from macmesh_daemon.identity import (  # noqa: PLC0415  loads cryptography
        IdentityError,
        LocalClusterExistsError,
        init_cluster,
        load_credentials,
    )

    folder = settings(args.data_dir).data_dir
    try:
        ca = init_cluster(folder)
        node = load_credentials(folder)
    except LocalClusterExistsError as error:
        raise CommandError(str(error), reason="CLUSTER_EXISTS") from error
    except (IdentityError, OSError) as error:
        raise CommandError(f"{folder}: {error}", reason="IDENTITY") from error
    if args.json:
        print_json(
            args,
            {
                "cluster": node.cluster_prefix,
                "cluster_hash": ca.cluster_hash,
                "node_id": node.node_id,
                "data_dir": str(folder),
                "certificate_ends": node.expires_at.isoformat(),
            },
        )
    else:
        print_data(
            f"cluster {node.cluster_prefix}: this node is {node.node_id[:8]}, its files lie in {folder}"
        )
        talk("start it with `macmeshd`, or at every boot with `daemonctl service install`")
    return exit_codes.OK
