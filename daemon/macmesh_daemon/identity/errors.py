"""Errors of node identity and trust.

::

    IdentityError
    ├── LocalIdentityError             something of this node's own
    │   ├── LocalClusterExistsError    the data folder already belongs to a cluster
    │   ├── LocalNoClusterError        the data folder belongs to no cluster yet
    │   ├── LocalCredentialsError      files are broken, expired or do not belong together
    │   │   └── LocalCertificateExpiredError  the node's certificate ended, grace included
    │   ├── LocalTokenError            not a join token, or one with impossible bounds
    │   └── LocalClientError           a client with an impossible name, role or validity
    └── RemoteIdentityError            something of the other side's
        ├── RemoteUnreachableError     nobody answered in time
        ├── RemoteUntrustedError       somebody answered who is not the node, or not of the cluster
        └── RemoteJoinRefusedError     the cluster did not admit this machine
"""


class IdentityError(Exception):
    """Base of all errors of identity and trust."""


class LocalIdentityError(IdentityError):
    """The fault lies with this node or its caller."""


class LocalClusterExistsError(LocalIdentityError):
    """The data folder already belongs to a cluster."""


class LocalNoClusterError(LocalIdentityError):
    """The data folder belongs to no cluster yet."""


class LocalCredentialsError(LocalIdentityError):
    """Key, certificate and cluster files are broken, expired or do not belong together."""


class LocalCertificateExpiredError(LocalCredentialsError):
    """The node's certificate ended, and its days of grace too."""


class LocalTokenError(LocalIdentityError):
    """What should be a join token is none, or is to have impossible bounds."""


class LocalClientError(LocalIdentityError):
    """A client is to have an impossible name, role or validity."""


class RemoteIdentityError(IdentityError):
    """The fault lies with the other side."""


class RemoteUnreachableError(RemoteIdentityError):
    """Nobody answered at the address in time."""


class RemoteUntrustedError(RemoteIdentityError):
    """Whoever answered is not the expected node, or not of this cluster."""


class RemoteJoinRefusedError(RemoteIdentityError):
    """The cluster did not admit this machine.

    Attributes:
        reason: UPPER_SNAKE, as in JoinRefusal.
        retry_after_seconds: When to try again; 0 where that is no use.
    """

    def __init__(self, reason: str, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
