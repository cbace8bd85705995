"""Errors of node identity and trust.

::

    IdentityError
    ├── LocalIdentityError             something of this node's own
    │   ├── LocalClusterExistsError    the data folder already belongs to a cluster
    │   ├── LocalNoClusterError        the data folder belongs to no cluster yet
    │   └── LocalCredentialsError      files are broken, expired or do not belong together
    └── RemoteIdentityError            something of the other side's
        ├── RemoteUnreachableError     nobody answered in time
        └── RemoteUntrustedError       somebody answered who is not the node, or not of the cluster
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


class RemoteIdentityError(IdentityError):
    """The fault lies with the other side."""


class RemoteUnreachableError(RemoteIdentityError):
    """Nobody answered at the address in time."""


class RemoteUntrustedError(RemoteIdentityError):
    """Whoever answered is not the expected node, or not of this cluster."""
