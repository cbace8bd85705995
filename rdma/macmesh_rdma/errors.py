"""Errors of the transport.

::

    TransportError
    ├── LocalTransportError              our own fault, or that of the code that called us
    │   ├── LocalAddressError            an address that this provider refuses
    │   ├── LocalLaneFullError           more waits to be sent than the lane holds
    │   ├── LocalLaneStateError          the lane is closed, broken, or has no such neighbour
    │   └── LocalProviderUnavailableError  this machine cannot run the provider
    └── RemoteTransportError             the other side's fault
        ├── RemotePeerLostError          the neighbour has gone
        ├── RemoteMismatchError          it sent something else than was expected
        ├── RemoteStrangerError          it is not who it should be
        └── RemoteTimeoutError           it was silent for too long (also a TimeoutError)
"""


class TransportError(Exception):
    """Base of all errors of the transport."""


class LocalTransportError(TransportError):
    """Our own fault, or that of the code that called us."""


class LocalAddressError(LocalTransportError):
    """An address that this provider refuses."""


class LocalLaneFullError(LocalTransportError):
    """More waits to be sent than the lane holds; nothing was sent."""


class LocalLaneStateError(LocalTransportError):
    """The lane is closed, broken, or has no such neighbour."""


class LocalProviderUnavailableError(LocalTransportError):
    """This machine cannot run the provider; the message says what is missing."""


class RemoteTransportError(TransportError):
    """The other side's fault."""


class RemotePeerLostError(RemoteTransportError):
    """The neighbour has gone."""


class RemoteMismatchError(RemoteTransportError):
    """The neighbour sent something else than was expected."""


class RemoteStrangerError(RemoteTransportError):
    """The other side is not who it should be."""


class RemoteTimeoutError(RemoteTransportError, TimeoutError):
    """The neighbour was silent for too long."""
