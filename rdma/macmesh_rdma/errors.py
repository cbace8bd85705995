"""Errors of the transport.

::

    TransportError
    ├── LocalTransportError              our own fault, or that of the code that called us
    │   ├── LocalAddressError            an address that cannot be used
    │   ├── LocalOptionError             an option out of its range
    │   ├── LocalResourceError           out of descriptors, memory or ports
    │   │   └── LocalSharedMemoryError   no shared memory can be had
    │   ├── LocalPortError               the message port is closed or in use, or takes no such message
    │   ├── LocalProviderError           the provider that was asked for cannot be used here
    │   ├── LocalInterruptedError        we were told to stop waiting
    │   ├── LocalLaneFullError           more waits to be sent than the lane holds
    │   ├── LocalLaneStateError          the lane or group is closed, broken, or has no such neighbour
    │   └── LocalVersionError            the native module is missing, or was built for another MLX
    └── RemoteTransportError             the other side's fault
        ├── RemoteAuthenticationError    it does not hold the key of the epoch, or does not speak our protocol
        ├── RemotePeerLostError          it has gone
        │   └── RemoteAbortedError       it gave up, and said why
        ├── RemoteMismatchError          it sent, or expects, something else than we do
        ├── RemoteCorruptError           it sent bytes that cannot be a frame
        ├── RemoteProviderError          what carries the bytes between us loses or damages them
        └── RemoteTimeoutError           it was silent for too long (also a TimeoutError)
"""

from typing import Any


class TransportError(Exception):
    """Base of all errors of the transport.

    Attributes:
        peer: Rank of the peer that it is about; None where there is none.
        epoch: Epoch of the group, as text; empty where there is none.
    """

    def __init__(self, *args: Any, peer: int | None = None, epoch: str = "") -> None:
        super().__init__(*args)
        self.peer = peer
        self.epoch = epoch


class LocalTransportError(TransportError):
    """Our own fault, or that of the code that called us."""


class LocalAddressError(LocalTransportError):
    """An address that cannot be used."""


class LocalOptionError(LocalTransportError):
    """An option out of its range."""


class LocalResourceError(LocalTransportError):
    """Out of descriptors, memory, shared memory or ports."""


class LocalProviderError(LocalTransportError):
    """The provider that was asked for cannot carry this link, or cannot run here."""


class LocalInterruptedError(LocalTransportError):
    """We were told to stop waiting."""


class LocalLaneFullError(LocalTransportError):
    """More waits to be sent than the lane holds; nothing was sent."""


class LocalLaneStateError(LocalTransportError):
    """The lane or group is closed, broken, or has no such neighbour."""


class LocalVersionError(LocalTransportError):
    """The native module is missing, does not load, or was built for another version of MLX."""


class LocalPortError(LocalTransportError):
    """The message port is closed or in use, or takes no such message."""


class LocalSharedMemoryError(LocalResourceError):
    """No shared memory can be had, or it cannot be used."""


class RemoteTransportError(TransportError):
    """The other side's fault."""


class RemoteAuthenticationError(RemoteTransportError):
    """It does not hold the key of the epoch, or does not speak our protocol."""


class RemotePeerLostError(RemoteTransportError):
    """The peer has gone."""


class RemoteAbortedError(RemotePeerLostError):
    """The peer gave up, and said why."""


class RemoteMismatchError(RemoteTransportError):
    """The peer sent, or expects, something else than we do."""


class RemoteCorruptError(RemoteTransportError):
    """The peer sent bytes that cannot be a frame."""


class RemoteProviderError(RemoteTransportError):
    """What carries the bytes to the peer damages them, or delivers nothing though the peer is there."""


class RemoteTimeoutError(RemoteTransportError, TimeoutError):
    """The peer was silent for too long."""
