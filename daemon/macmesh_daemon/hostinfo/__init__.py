"""What a node knows about its own machine: memory, chip, bandwidth, versions."""

from macmesh_daemon.hostinfo.chips import published_bandwidth_gb_per_s
from macmesh_daemon.hostinfo.errors import HostInfoError, LocalProbeError
from macmesh_daemon.hostinfo.facts import HostReport, NodeFacts, collect_facts
from macmesh_daemon.hostinfo.probe import bandwidth_gb_per_s
from macmesh_daemon.hostinfo.usable import capped, linux_usable_bytes, metal_usable_bytes

__all__ = [
    "HostInfoError",
    "HostReport",
    "LocalProbeError",
    "NodeFacts",
    "bandwidth_gb_per_s",
    "capped",
    "collect_facts",
    "linux_usable_bytes",
    "metal_usable_bytes",
    "published_bandwidth_gb_per_s",
]
