"""`daemonctl cluster join`: make this machine a node of a cluster."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import settings
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, talk
from macmesh_daemon.cli.parsers import add_command, amount

if TYPE_CHECKING:
    import argparse

    from macmesh_daemon.cli.parsers import Subparsers
    from macmesh_daemon.config import Config
    from macmesh_daemon.identity import JoinToken
    from macmesh_daemon.node.join_client import Joined

_EXAMPLES = """
daemonctl cluster join TOKEN                                  find the cluster on the network and join it
daemonctl cluster join TOKEN --address 192.168.1.10:27451     where multicast is blocked
daemonctl cluster join -                                      read the token from stdin, past the shell's history
"""
_LONGEST_WAIT_SECONDS = 60.0


def add_parsers(group: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        group,
        "join",
        summary="make this machine a node of the cluster that the token is of",
        examples=_EXAMPLES,
        run=run,
        daemon=False,
        form="cluster-join",
    )
    parser.add_argument(
        "token", metavar="TOKEN", help="from `daemonctl cluster token`; - reads it from stdin"
    )
    parser.add_argument(
        "--address",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="join door of the node that made the token; may be repeated (default: found by mDNS)",
    )
    parser.add_argument(
        "--data-dir", metavar="FOLDER", help="data folder of the node (default: as configured)"
    )
    parser.add_argument(
        "--timeout",
        type=amount,
        default=30.0,
        metavar="SECONDS",
        help="longest wait for the cluster (default 30)",
    )


def run(args: argparse.Namespace) -> int:
    """Join."""
    import asyncio  # noqa: PLC0415  few commands need it

    from macmesh_daemon.config import ConfigError, split_address  # noqa: PLC0415  slow
    from macmesh_daemon.files import FilesError  # noqa: PLC0415
    from macmesh_daemon.identity import (  # noqa: PLC0415  loads cryptography
        IdentityError,
        JoinToken,
        LocalTokenError,
        RemoteJoinRefusedError,
        RemoteUnreachableError,
    )

    config = settings(args.data_dir)
    try:
        token = JoinToken.parse(sys.stdin.readline() if args.token == "-" else args.token)  # noqa: S105  not a secret
        for address in args.address:
            split_address(address)
    except (LocalTokenError, ValueError, ConfigError) as error:
        raise CommandError(str(error), reason="USAGE", exit_code=exit_codes.USAGE) from error
    try:
        joined = asyncio.run(_join(config, token, tuple(args.address), args.timeout))
    except RemoteJoinRefusedError as error:
        code = exit_codes.TRY_AGAIN if error.retry_after_seconds else exit_codes.FAILED
        raise CommandError(str(error), reason=error.reason, exit_code=code) from error
    except RemoteUnreachableError as error:
        raise CommandError(str(error), reason="UNREACHABLE", exit_code=exit_codes.TRY_AGAIN) from error
    except (IdentityError, FilesError, OSError) as error:
        raise CommandError(str(error), reason="IDENTITY") from error
    node = joined.credentials
    if args.json:
        print_json(
            args,
            {
                "cluster": node.cluster_prefix,
                "cluster_hash": node.cluster_hash,
                "node_id": node.node_id,
                "data_dir": str(config.data_dir),
                "certificate_ends": node.expires_at.isoformat(),
                "renewed": joined.renewed,
            },
        )
        return exit_codes.OK
    what = "has a new certificate" if joined.renewed else "joined"
    print_data(f"this node, {node.node_id[:8]}, {what} (cluster {node.cluster_prefix}, {config.data_dir})")
    if joined.renewed:
        talk(
            "a daemon that waits goes on by itself; one that runs takes the new certificate at its next start"
        )
    else:
        talk("a daemon that waits here goes on by itself within a second; start one with `macmeshd`,")
        talk("or at every boot with `daemonctl service install`")
    return exit_codes.OK


async def _join(config: Config, token: JoinToken, addresses: tuple[str, ...], wait_seconds: float) -> Joined:
    """Find the door and join; trouble that may pass is tried again until the wait is over."""
    import asyncio  # noqa: PLC0415  few commands need it

    from macmesh_daemon.discovery.pairing import find_join_door  # noqa: PLC0415  loads zeroconf
    from macmesh_daemon.identity import RemoteJoinRefusedError, RemoteUnreachableError  # noqa: PLC0415
    from macmesh_daemon.node.join_client import join_cluster  # noqa: PLC0415

    until = time.monotonic() + wait_seconds
    while True:
        left = until - time.monotonic()
        doors = addresses
        if not doors:
            try:
                doors = await find_join_door(
                    token.cluster_hash[:8],
                    token.issuer_node_id,
                    interfaces=config.mdns_interfaces,
                    deadline_seconds=max(left, 0.1),
                )
            except TimeoutError:
                raise RemoteUnreachableError(
                    f"no open join door of cluster {token.cluster_hash[:8]} was found by mDNS within "
                    f"{wait_seconds:.0f} s: is the token still good, and the node that made it running? Where "
                    "multicast is blocked, name it with --address"
                ) from None
        try:
            return await join_cluster(config.data_dir, token, doors)
        except (RemoteUnreachableError, RemoteJoinRefusedError) as error:
            wait = error.retry_after_seconds if isinstance(error, RemoteJoinRefusedError) else 1.0
            if not 0 < wait <= min(_LONGEST_WAIT_SECONDS, until - time.monotonic()):
                raise
            talk(f"{error}; trying again in {wait:.0f} s")
            await asyncio.sleep(wait)
