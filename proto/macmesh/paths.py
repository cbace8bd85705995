"""Where this machine's daemon listens: pure functions, so that daemon, SDK and CLI always agree."""

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SOCKET_NAME: Final = "macmeshd.sock"

#: A Unix socket's path is at most 103 bytes on macOS (107 on Linux); gRPC needs some of it.
LONGEST_SOCKET_PATH_BYTES: Final = 100


def default_data_folder(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """The user's data folder of macmesh, which is the one that platformdirs names.

    Args:
        environ: Environment; ``HOME`` and, off macOS, ``XDG_DATA_HOME`` are read.
        platform: As `sys.platform`.
    """
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    if platform == "darwin":
        return home / "Library" / "Application Support" / "macmesh"
    xdg = environ.get("XDG_DATA_HOME", "").strip()
    return (Path(xdg) if xdg else home / ".local" / "share") / "macmesh"


def socket_path(data_folder: Path, uid: int | None = None) -> Path:
    """The socket of the daemon that owns a data folder.

    It lies in the data folder, or where that path would pass 100 bytes in ``/tmp/macmesh-<uid>/<hash>.sock``.
    The daemon makes that folder with mode 0700 and refuses one that another user owns.

    Args:
        data_folder: The daemon's folder; it need not exist.
        uid: User id for the short folder; the caller's own by default.
    """
    path = data_folder / SOCKET_NAME
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(data_folder.absolute())).hexdigest()[:16]
    return Path("/tmp") / f"macmesh-{os.getuid() if uid is None else uid}" / f"{digest}.sock"  # noqa: S108  the short, per-user folder


def socket_address(path: Path) -> str:
    """The address that gRPC takes for a socket, in servers and clients: a URI, so that %, # and ? are escaped."""
    text = os.path.abspath(path)  # noqa: PTH100  resolve() would follow links
    return "unix://" + text.replace("%", "%25").replace("#", "%23").replace("?", "%3F")


def default_socket_path(
    environ: Mapping[str, str] = os.environ, platform: str = sys.platform, uid: int | None = None
) -> Path:
    """Where the user's daemon listens.

    The first of: ``MACMESH_SOCKET``; ``MACMESH_SOCKET_PATH`` and the socket in ``MACMESH_DATA_DIR``, which the
    daemon reads too; the socket in the default data folder.
    """
    for variable in ("MACMESH_SOCKET", "MACMESH_SOCKET_PATH"):
        chosen = environ.get(variable, "").strip()
        if chosen:
            return Path(chosen).expanduser()
    data_folder = environ.get("MACMESH_DATA_DIR", "").strip()
    folder = Path(data_folder).expanduser() if data_folder else default_data_folder(environ, platform)
    return socket_path(folder, uid)
