"""`daemonctl cluster`: make a cluster, let machines in, and shut them out."""

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
_GROUP_EXAMPLES = """
daemonctl cluster init          make this machine the first node of a new cluster
daemonctl cluster token         there: a token for one more machine, good for an hour
daemonctl cluster join TOKEN    on the other machine
daemonctl cluster members       who is in
daemonctl cluster evict studio2 shut a node out for good
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands."""
    # Its siblings' modules load nothing slow either.
    from macmesh_daemon.cli.commands import cluster_ca, cluster_join, cluster_nodes, cluster_token  # noqa: PLC0415

    group = add_group(
        subparsers,
        "cluster",
        summary="make a cluster, let machines in, shut them out",
        examples=_GROUP_EXAMPLES,
    )
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
    for module in (cluster_token, cluster_join, cluster_nodes, cluster_ca):
        module.add_parsers(group)


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
        talk("start it with `macmeshd`, or at every boot with `daemonctl service install`;")
        talk("a daemon that waits for a cluster goes on by itself within a second")
        talk(
            "this node alone can let others in: keep a copy of the cluster's CA with `daemonctl cluster ca export`"
        )
    return exit_codes.OK
