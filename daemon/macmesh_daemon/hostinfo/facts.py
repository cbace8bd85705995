"""What a node knows about its own machine."""

import asyncio
import importlib.metadata
import os
import socket
import sys
from dataclasses import dataclass, replace

import psutil

from macmesh_daemon.config import Config
from macmesh_daemon.hostinfo import linux
from macmesh_daemon.hostinfo.chips import published_bandwidth_gb_per_s
from macmesh_daemon.hostinfo.errors import LocalProbeError
from macmesh_daemon.hostinfo.macos import MacFacts, read_mac_facts
from macmesh_daemon.hostinfo.probe import bandwidth_gb_per_s
from macmesh_daemon.hostinfo.usable import capped, linux_usable_bytes, metal_usable_bytes
from macmesh_daemon.identity import host_id


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The machine, in the fields of ``macmesh.v1.NodeFacts``."""

    hostname: str
    #: Hash of the hardware UUID: daemons with the same one share a machine and its memory.
    host_id: str
    chip: str
    ram_bytes: int
    #: What models may take: the system's limit, lowered by the configured cap.
    usable_bytes: int
    #: Measured; 0 where unknown.
    bandwidth_gb_per_s: float
    #: Published; 0 where unknown.
    table_bandwidth_gb_per_s: float
    macmesh_version: str
    mlx_version: str
    mlx_lm_version: str
    portable: bool
    cpu_count: int


@dataclass(frozen=True, slots=True)
class HostReport:
    """The facts, and one line per thing that could not be found out."""

    facts: NodeFacts
    problems: tuple[str, ...] = ()


async def collect_facts(config: Config) -> HostReport:
    """Find out about the machine; measures the memory bandwidth (about a second) where it is not known yet.

    Never fails: what cannot be found out is 0 or empty, with a line in ``problems``.
    """
    facts = await asyncio.to_thread(_without_probe, config)
    problems: list[str] = []
    if facts.ram_bytes == 0:
        problems.append("the size of the memory could not be read: this node is given no layers")
    if config.bandwidth_probe:
        key = f"{facts.chip}/{facts.ram_bytes}/{facts.cpu_count}"
        try:
            measured = await bandwidth_gb_per_s(config.resolved_probe_cache_dir(), key)
            facts = replace(facts, bandwidth_gb_per_s=measured)
        except LocalProbeError as error:
            problems.append(str(error))
    return HostReport(facts, tuple(problems))


def facts_of_mac(mac: MacFacts, *, usable_cap_bytes: int) -> NodeFacts:
    """Turn what macOS said into facts."""
    return NodeFacts(
        hostname=socket.gethostname(),
        host_id=host_id(),
        chip=mac.chip,
        ram_bytes=mac.ram_bytes,
        usable_bytes=capped(metal_usable_bytes(mac.ram_bytes, mac.wired_limit_mb), usable_cap_bytes),
        bandwidth_gb_per_s=0.0,
        table_bandwidth_gb_per_s=published_bandwidth_gb_per_s(mac.chip, mac.gpu_cores),
        macmesh_version=_version("macmesh"),
        mlx_version=_version("mlx"),
        mlx_lm_version=_version("mlx-lm"),
        portable=mac.portable,
        cpu_count=mac.cpu_count or os.cpu_count() or 1,
    )


def facts_of_linux(*, usable_cap_bytes: int) -> NodeFacts:
    """Ask Linux."""
    ram_bytes = linux.read_ram_bytes(psutil.virtual_memory().total)
    return NodeFacts(
        hostname=socket.gethostname(),
        host_id=host_id(),
        chip=linux.read_cpu_name(),
        ram_bytes=ram_bytes,
        usable_bytes=capped(linux_usable_bytes(ram_bytes), usable_cap_bytes),
        bandwidth_gb_per_s=0.0,
        table_bandwidth_gb_per_s=0.0,
        macmesh_version=_version("macmesh"),
        mlx_version=_version("mlx"),
        mlx_lm_version=_version("mlx-lm"),
        portable=linux.is_portable(),
        cpu_count=os.cpu_count() or 1,
    )


def _without_probe(config: Config) -> NodeFacts:
    if sys.platform == "darwin":
        return facts_of_mac(read_mac_facts(), usable_cap_bytes=config.usable_bytes)
    return facts_of_linux(usable_cap_bytes=config.usable_bytes)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
