"""Errors of the node's shell.

::

    NodeError
    ├── LocalCodecMismatch                             a class and its protobuf message differ (a bug)
    ├── LocalValueNotEncodable (also a ValueError)     a value that has no protobuf form
    ├── LocalStateCorrupt                              the state file is torn, damaged or of another version
    ├── LocalStateNotWritable (also an OSError)        the state could not be made durable
    ├── LocalDataFolderBusy                            another daemon uses the data folder
    ├── LocalPortBusy                                  the port or socket cannot be listened on
    └── LocalSocketFolderUnsafe                        somebody else could replace the socket
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class NodeError(Exception):
    """Base of the errors of this package."""


class LocalCodecMismatch(NodeError):  # noqa: N818  named as the project's error trees are
    """A class of the cluster core and its protobuf message differ."""


class LocalValueNotEncodable(NodeError, ValueError):  # noqa: N818  same
    """A value has no protobuf form, or a message no class."""


class LocalStateCorrupt(NodeError):  # noqa: N818  same
    """The state file cannot be trusted.

    Attributes:
        path: The file.
    """

    def __init__(self, path: "Path", what: str) -> None:
        super().__init__(
            f"the state file {path} is damaged: {what}. A node must not guess its votes and promises: "
            "restore the file from a backup, or move it away and let the node join again under a new identity"
        )
        self.path = path


class LocalStateNotWritable(NodeError, OSError):  # noqa: N818  same
    """The state could not be made durable; the daemon must not go on.

    Attributes:
        path: The file.
    """

    def __init__(self, path: "Path", cause: OSError) -> None:
        super().__init__(
            f"cannot write the state file {path}: {cause}. Free space or mend the disk, then start again"
        )
        self.path = path


class LocalDataFolderBusy(NodeError):  # noqa: N818  same
    """Another daemon uses the data folder.

    Attributes:
        folder: The data folder.
        pid: The other daemon's process id; None where it could not be read.
    """

    def __init__(self, folder: "Path", pid: int | None) -> None:
        who = f"process {pid}" if pid is not None else "another process"
        super().__init__(
            f"the data folder {folder} is in use by {who}: stop that daemon, or name another folder"
        )
        self.folder = folder
        self.pid = pid


class LocalPortBusy(NodeError):  # noqa: N818  same
    """The port or socket cannot be listened on."""

    def __init__(self, address: str, cause: Exception | None) -> None:
        what = f": {cause}" if cause is not None else ""
        super().__init__(
            f"cannot listen on {address}{what}. Another program holds it: stop that one, or set listen_port "
            "(0 takes a free port) or socket_path"
        )
        self.address = address


class LocalSocketFolderUnsafe(NodeError):  # noqa: N818  same
    """The folder of the Unix socket is not this user's alone."""

    def __init__(self, folder: "Path") -> None:
        super().__init__(
            f"the socket's folder {folder} must be a folder of this user that nobody else may write to: "
            "mend its owner and mode, or set socket_path"
        )
        self.folder = folder
