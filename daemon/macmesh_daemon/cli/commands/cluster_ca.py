"""`daemonctl cluster ca`: keep a copy of the cluster's CA, or bring it to another node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import settings
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, talk
from macmesh_daemon.cli.parsers import add_command

if TYPE_CHECKING:
    import argparse

    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl cluster ca export cluster.ca      on the node that holds the CA key: a copy under a passphrase
daemonctl cluster ca import cluster.ca      on another node: it can let machines in from then on
"""


def add_parsers(group: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        group,
        "ca",
        summary="copy the key of the cluster's CA, under a passphrase",
        examples=_EXAMPLES,
        run=run,
        daemon=False,
        form="cluster-ca",
    )
    parser.add_argument("action", choices=("export", "import"), help="what to do")
    parser.add_argument("file", metavar="FILE", help="the copy; export refuses to overwrite one")
    parser.add_argument(
        "--passphrase-file", metavar="FILE", help="read the passphrase from its first line (default: ask)"
    )
    parser.add_argument(
        "--data-dir", metavar="FOLDER", help="data folder of the node (default: as configured)"
    )


def run(args: argparse.Namespace) -> int:
    """Export or import."""
    from macmesh_daemon.identity import (  # noqa: PLC0415  loads cryptography
        IdentityError,
        export_ca,
        import_ca_key,
        load_cluster_credentials,
        open_exported_ca,
    )

    folder = settings(args.data_dir).data_dir
    path = Path(args.file).expanduser()
    try:
        if args.action == "export":
            ca = load_cluster_credentials(folder)
            write_private(path, export_ca(ca, _passphrase(args, twice=True)))
        else:
            ca = open_exported_ca(path.read_bytes(), _passphrase(args, twice=False))
            import_ca_key(folder, ca)
    except (IdentityError, OSError) as error:
        raise CommandError(str(error), reason="IDENTITY") from error
    if args.json:
        print_json(args, {"action": args.action, "cluster_hash": ca.cluster_hash, "file": str(path)})
    elif args.action == "export":
        print_data(f"the CA of cluster {ca.cluster_hash[:8]} is in {path}, under the passphrase")
        talk("whoever has both can let machines in: keep them apart, and off this machine")
    else:
        print_data(f"this node can let machines into cluster {ca.cluster_hash[:8]} now")
    return exit_codes.OK


def write_private(path: Path, content: bytes) -> None:
    """Make a file that only this user can read.

    Raises:
        CommandError: There is one of that name.
        OSError: It cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise CommandError(f"{path} is there already: name another file", reason="FILE_EXISTS") from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(content)


def _passphrase(args: argparse.Namespace, *, twice: bool) -> str:
    if args.passphrase_file:
        lines = Path(args.passphrase_file).expanduser().read_text("utf-8").splitlines()
        return lines[0] if lines else ""
    from getpass import getpass  # noqa: PLC0415  only where a person types

    first = getpass("passphrase: ")
    if twice and getpass("again: ") != first:
        raise CommandError("the two passphrases differ", reason="USAGE", exit_code=exit_codes.USAGE)
    return first
