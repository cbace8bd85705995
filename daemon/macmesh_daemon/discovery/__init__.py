"""Where other nodes might be: mDNS, configured seeds, and the peers of the last run.

Everything here yields candidates, never members.
"""

from macmesh_daemon.discovery.base import (
    Candidate,
    CandidateCallback,
    Discovery,
    DiscoveryError,
    Hints,
    LocalAdvertisementError,
    Source,
    join_address,
)
from macmesh_daemon.discovery.fake import FakeDiscovery, FakeNetwork
from macmesh_daemon.discovery.interfaces import (
    InterfaceAddress,
    InterfaceChoice,
    choose_interfaces,
    current_interfaces,
)
from macmesh_daemon.discovery.mdns import MdnsDiscovery
from macmesh_daemon.discovery.peers import PeerBook
from macmesh_daemon.discovery.session import SERVICE_TYPE, Advertisement
from macmesh_daemon.discovery.static import StaticDiscovery
from macmesh_daemon.discovery.txt import PROTOCOL_VERSION

__all__ = [
    "PROTOCOL_VERSION",
    "SERVICE_TYPE",
    "Advertisement",
    "Candidate",
    "CandidateCallback",
    "Discovery",
    "DiscoveryError",
    "FakeDiscovery",
    "FakeNetwork",
    "Hints",
    "InterfaceAddress",
    "InterfaceChoice",
    "LocalAdvertisementError",
    "MdnsDiscovery",
    "PeerBook",
    "Source",
    "StaticDiscovery",
    "choose_interfaces",
    "current_interfaces",
    "join_address",
]
