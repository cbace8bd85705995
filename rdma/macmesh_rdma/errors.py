"""Errors of the transport.

::

    TransportError
    ├── LocalTransportError              our own fault, or that of the code that called us
    │   ├── LocalAddressError            an address that this provider refuses
    │   ├── LocalLaneStateError          the lane is closed, broken, or has no such neighbour
    │   ├── LocalPortError               the port is closed or in use, or takes no such message
    │   └── LocalSharedMemoryError       no shared memory can be had
    └── RemoteTransportError             the other side's fault
        ├── RemotePeerLostError          the neighbour has gone
        ├── RemoteMismatchError          it sent something else than was expected
        └── RemoteTimeoutError           it was silent for too long (also a TimeoutError)
"""


class TransportError(Exception):
    """Base of all errors of the transport."""


class LocalTransportError(TransportError):
    """Our own fault, or that of the code that called us."""


class LocalAddressError(LocalTransportError):
    """An address that this provider refuses."""


class LocalLaneStateError(LocalTransportError):
    """The lane is closed, broken, or has no such neighbour."""


class LocalPortError(LocalTransportError):
    """The message port is closed or in use, or takes no such message."""


class LocalSharedMemoryError(LocalTransportError):
    """No shared memory can be had, or it cannot be used."""


class RemoteTransportError(TransportError):
    """The other side's fault."""


class RemotePeerLostError(RemoteTransportError):
    """The neighbour has gone."""


class RemoteMismatchError(RemoteTransportError):
    """The neighbour sent something else than was expected."""


class RemoteTimeoutError(RemoteTransportError, TimeoutError):
    """The neighbour was silent for too long."""
