"""Errors of the node's shell.

::

    NodeError
    ├── LocalCodecMismatch                             a class and its protobuf message differ (a bug)
    ├── LocalValueNotEncodable (also a ValueError)     a value that has no protobuf form
    ├── LocalStateCorrupt                              the state file is torn, damaged or of another version
    ├── LocalStateNotWritable (also an OSError)        the state could not be made durable
    ├── LocalPortBusy                                  the port or socket cannot be listened on
    └── RemoteCallFailed                               a peer gave no answer, in time or at all
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from macmesh_daemon.cluster.events import FailureKind


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
            f"the state file {path} is damaged: {what}. A node must not guess its votes and promises, and an "
            "older copy of the file would forget some: move the whole data folder away, evict this node's id "
            "elsewhere, and let the machine join again under a new identity"
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


class LocalPortBusy(NodeError):  # noqa: N818  same
    """The port or socket cannot be listened on."""

    def __init__(self, address: str, cause: Exception | None) -> None:
        what = f": {str(cause).partition(';')[0]}" if cause is not None else ""
        super().__init__(
            f"cannot listen on {address}{what}. Another program holds it: stop that one, or set listen_port "
            "(0 takes a free port) or socket_path"
        )
        self.address = address


class RemoteCallFailed(NodeError):  # noqa: N818  same
    """A peer gave no answer: not within the deadline, or it cannot be reached, or it refused.

    Attributes:
        kind: Which of these, as `macmesh_daemon.cluster.events.FailureKind` defines it.
    """

    def __init__(self, message: str, kind: "FailureKind" = "error") -> None:
        super().__init__(message)
        self.kind = kind
