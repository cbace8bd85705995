"""What every source of candidates promises.

Discovery raises nothing at its user: a source that cannot work says so in ``health()`` and tries again. The
only errors are those of a wrong call::

    DiscoveryError
    └── LocalAdvertisementError   what is to be advertised does not fit the format
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

Source = Literal["mdns", "static", "peer"]


class DiscoveryError(Exception):
    """Base of the errors of discovery."""


class LocalAdvertisementError(DiscoveryError):
    """What is to be advertised does not fit the format."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What a node says about itself in mDNS. Public, unauthenticated and possibly old: for display only.

    The true values come over mutual TLS.
    """

    #: Wire protocol version.
    protocol_version: int
    #: First eight hex digits of the cluster's CA hash.
    cluster_prefix: str
    ram_bytes: int = 0
    usable_bytes: int = 0
    bandwidth_gb_per_s: float = 0.0
    chip: str = ""
    host_id: str = ""
    incarnation: int = 0
    #: ``up`` or ``leaving``.
    state: str = "up"
    #: Whether the cluster accepts join requests at the moment.
    pairing_open: bool = False
    #: TCP port of the join door while it is open; 0 otherwise.
    join_port: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """Addresses that might be a node. Never a member by itself: whoever dials checks the certificate."""

    #: The id it is said to have; None where unknown (a static seed).
    node_id: str | None
    #: ``host:port`` or ``[ipv6%scope]:port``, best first, at least one.
    addresses: tuple[str, ...]
    source: Source
    #: From mDNS only.
    hints: Hints | None = None


CandidateCallback = Callable[[Candidate], None]


class Discovery(ABC):
    """A source of candidates.

    Promises: candidates are reported from the event loop that runs ``run``, one at a time; the same one may
        come any number of times, and its addresses may change; the node itself is never reported. Not
        promised: that a candidate exists, that it still exists, that there are not others.
    """

    #: Goes into every candidate.
    source: ClassVar[Source]

    @abstractmethod
    async def run(self, found: CandidateCallback) -> None:
        """Look for candidates until cancelled; nothing in the surroundings ends it.

        Cancelling it is how to stop: it says goodbye where that is possible and returns within two seconds.
        After that ``found`` is not called again.

        Args:
            found: Called with each candidate; must be quick and must not raise.
        """

    @abstractmethod
    def refresh(self) -> None:
        """Look again now: after waking up, or when peers or the coordinator were lost."""

    @abstractmethod
    def health(self) -> tuple[str, ...]:
        """Return one line per thing that is wrong now; empty where all is well."""


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
