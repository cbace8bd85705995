"""Where to connect: targets, channel options, and why a connection failed."""

import errno
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from macmesh.channel_options import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from macmesh.credentials import Credentials
from macmesh.errors import (
    LocalArgumentError,
    LocalDaemonNotRunningError,
    LocalError,
    LocalSocketForbiddenError,
)
from macmesh.paths import default_socket_path, socket_address

Options = list[tuple[str, int | str]]

_HOST_PORT: Final = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed target.

    Attributes:
        address: What gRPC is given.
        socket: The Unix socket; None for TCP.
        credentials: Set for TCP.
        is_default: The target was not named: only a socket of the same user is trusted.
    """

    address: str
    socket: Path | None
    credentials: Credentials | None
    is_default: bool = False

    def options(self) -> Options:
        """Options of a client's channel."""
        options: Options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            # Nodes are neighbours: never through a proxy of the environment.
            ("grpc.enable_http_proxy", 0),
            # A daemon that restarts is found again soon.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # Channels to different daemons must not share a connection.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.credentials is not None:
            options += [
                ("grpc.ssl_target_name_override", self.credentials.server_name),
                ("grpc.default_authority", self.credentials.server_name),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ]
        return options

    def tls(self) -> grpc.ChannelCredentials | None:
        """Credentials of the channel; None for a Unix socket, whose file permissions say who may connect."""
        if self.credentials is None:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=self.credentials.ca_pem,
            private_key=self.credentials.key_pem,
            certificate_chain=self.credentials.certificate_pem,
        )

    def __str__(self) -> str:
        return self.address


def parse_target(target: str | Path | None, credentials: Credentials | Path | str | None = None) -> Target:
    """Parse what a user may give.

    Args:
        target: ``unix:///path``, a path, ``host:port``, or None for the credentials' first address, else for
            the socket of the user's own daemon.
        credentials: For ``host:port``: credentials or their file.

    Raises:
        LocalArgumentError: The target is malformed, or credentials are missing or out of place.
        LocalCredentialsError: The credentials file cannot be read.
    """
    if credentials is not None and not isinstance(credentials, Credentials):
        credentials = Credentials.from_file(credentials)
    if target is None and credentials is not None:
        if not credentials.addresses:
            raise LocalArgumentError("these credentials name no address: give a target host:port")
        target = credentials.addresses[0]
    if target is None:
        return _unix(default_socket_path(), is_default=True)
    if isinstance(target, Path) or target.startswith(("unix:", "/", "~", "./", "../")):
        if credentials is not None:
            raise LocalArgumentError(f"{target} is a Unix socket: it takes no credentials")
        text = str(target)
        if text.startswith("unix:"):
            text = text.removeprefix("unix:")
            text = text.removeprefix("//") if text.startswith("///") else text
        return _unix(Path(text).expanduser())
    match = _HOST_PORT.fullmatch(target)
    if match is None or not 0 < int(match[2]) < 65536:  # noqa: PLR2004  ports are 16 bits
        raise LocalArgumentError(f"{target!r} is no target: use unix:///path or host:port")
    if credentials is None:
        raise LocalArgumentError(
            f"{target} needs credentials: a node speaks mutual TLS on TCP. On the node itself use its socket"
        )
    return Target(f"dns:///{target}", None, credentials)


def _unix(path: Path, *, is_default: bool = False) -> Target:
    path = Path(os.path.abspath(path))  # noqa: PTH100  resolve() would follow links
    return Target(socket_address(path), path, None, is_default)


def check_owner(target: Target) -> None:
    """Refuse a default socket that another user made: prompts are not for everybody.

    Raises:
        LocalSocketForbiddenError: The socket exists and belongs to neither this user nor root.
    """
    if target.socket is None or not target.is_default:
        return
    try:
        owner = target.socket.stat().st_uid
    except OSError:
        return  # the call itself says what is wrong
    if owner not in {os.getuid(), 0}:
        raise LocalSocketForbiddenError(
            f"{target.socket} belongs to user id {owner}: name it with its path if you trust it",
            {"socket": str(target.socket), "owner": str(owner)},
        )


def unix_failure(path: Path) -> LocalError | None:
    """Why a Unix socket cannot be connected to; None where somebody listens on it.

    One non-blocking connect, which a Unix socket answers at once.
    """
    facts = {"socket": str(path)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return None  # somebody listens; the backlog is full
        except PermissionError:
            return LocalSocketForbiddenError(f"{path} may not be opened by this user", facts)
        except ConnectionRefusedError:
            return LocalDaemonNotRunningError(
                f"macmeshd is not running: {path} is left over from a daemon that ended."
                " Start it with `macmeshd` or `daemonctl service install`",
                facts,
            )
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                return LocalDaemonNotRunningError(
                    f"macmeshd is not running: there is no socket {path}."
                    " Start it with `macmeshd` or `daemonctl service install`",
                    facts,
                )
            return LocalDaemonNotRunningError(f"cannot connect to {path}: {error}", facts)
    return None
