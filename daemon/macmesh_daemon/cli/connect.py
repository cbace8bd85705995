"""Which daemon a command talks to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from macmesh.paths import default_socket_path
from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.failures import CommandError

if TYPE_CHECKING:
    import argparse

    from macmesh import Client
    from macmesh_daemon.config import Config

#: Each of them says where the socket is, before any configuration file.
_VARIABLES = ("MACMESH_SOCKET", "MACMESH_SOCKET_PATH", "MACMESH_DATA_DIR")


def connect(args: argparse.Namespace) -> Client:
    """A client of the daemon that the arguments name; nothing is connected yet."""
    from macmesh import Client  # noqa: PLC0415  loads gRPC, which --help does without

    return Client(socket_argument(args))


def socket_argument(args: argparse.Namespace) -> Path | None:
    """The socket that the arguments or a configuration file name; None leaves it to the SDK."""
    return Path(args.socket).expanduser() if args.socket else _configured_socket()


def _configured_socket() -> Path | None:
    """The socket that a configuration file moved; None where no file did, or the environment goes before it."""
    if any(os.environ.get(name, "").strip() for name in _VARIABLES):
        return None
    folder = default_socket_path().parent
    named = os.environ.get("MACMESH_CONFIG")
    places = [Path(named).expanduser()] if named else [folder / "config.toml", _xdg_config() / "config.toml"]
    if not any(place.is_file() for place in places):
        return None
    return settings().resolved_socket_path()


def settings(data_dir: str | None = None) -> Config:
    """The daemon's configuration, as a command needs it.

    Args:
        data_dir: Goes before what is configured.

    Raises:
        CommandError: The configuration is wrong.
    """
    from macmesh_daemon.config import ConfigError, load_config  # noqa: PLC0415  slow, and few commands need it

    # The client's own variable: no setting of the daemon has this name.
    env = {name: value for name, value in os.environ.items() if name != "MACMESH_SOCKET"}
    try:
        return load_config({"data_dir": data_dir}, env=env)
    except ConfigError as error:
        raise CommandError(str(error), reason="BAD_CONFIGURATION", exit_code=exit_codes.USAGE) from error


def _xdg_config() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "macmesh"
