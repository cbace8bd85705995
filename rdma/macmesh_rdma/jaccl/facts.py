"""What decides whether a node can use RDMA over Thunderbolt, asked from the running system."""

import asyncio
import contextlib
import dataclasses
import ipaddress
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from macmesh_rdma.jaccl.ibv import PORT_ACTIVE, IbvDevice, parse_ibv_devinfo, parse_rdma_ctl
from macmesh_rdma.jaccl.thunderbolt import (
    ThunderboltFormatError,
    ThunderboltPort,
    interface_of,
    parse_hardware_ports,
    parse_thunderbolt,
)
from macmesh_rdma.verbs.facts import VerbsFacts

COMMAND_DEADLINE_SECONDS = 10.0
MIN_SPEED_GBIT_PER_S = 80.0
"""Thunderbolt 5. macOS lists RDMA devices for Thunderbolt 4 ports too, which never become active."""

RDMA_CTL = ("/usr/bin/rdma_ctl", "status")
IBV_DEVINFO = ("/usr/bin/ibv_devinfo", "-v")
PROFILER = ("/usr/sbin/system_profiler", "SPThunderboltDataType", "-json")
HARDWARE_PORTS = ("/usr/sbin/networksetup", "-listallhardwareports")

Runner = Callable[[Sequence[str]], Awaitable[str]]
"""Runs a command and returns what it wrote to stdout; raises OSError where it cannot be run or fails."""


@dataclasses.dataclass(frozen=True)
class CableEnd:
    """One RDMA device and the port that it belongs to.

    Attributes:
        device: name for verbs, such as "rdma_en3".
        domain_uuid: of its port.
        peer_uuids: domains of the Macs at the other end of the cable.
        refused: why it cannot be used; empty where it can.
    """

    device: str
    domain_uuid: str
    peer_uuids: tuple[str, ...] = ()
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class RdmaFacts:
    """What a node says about its RDMA devices. Plain data, told to others as JSON.

    Attributes:
        macos_build: such as "25C56"; both ends of a cable must run the same one.
        mlx_version: both ends must run the same one.
        ends: its cable ends, by device name.
        max_queue_pairs: the fewest that one of its devices has; 0 where it was not told.
        max_memory_regions: likewise.
        refused: why the node has no RDMA at all; empty where it has.
        verbs: what the verbs library of its system lists.
    """

    macos_build: str = ""
    mlx_version: str = ""
    ends: tuple[CableEnd, ...] = ()
    max_queue_pairs: int = 0
    max_memory_regions: int = 0
    refused: str = ""
    verbs: VerbsFacts = dataclasses.field(default_factory=VerbsFacts)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RdmaFacts":
        """What `to_json` made.

        Raises:
            ValueError: it has another form.
        """
        try:
            ends = tuple(
                CableEnd(
                    device=str(end["device"]),
                    domain_uuid=str(end["domain_uuid"]),
                    peer_uuids=tuple(map(str, end["peer_uuids"])),
                    refused=str(end["refused"]),
                )
                for end in value["ends"]
            )
            return cls(
                macos_build=str(value["macos_build"]),
                mlx_version=str(value["mlx_version"]),
                ends=ends,
                max_queue_pairs=int(value["max_queue_pairs"]),
                max_memory_regions=int(value["max_memory_regions"]),
                refused=str(value["refused"]),
                # A member of an older version does not tell it.
                verbs=VerbsFacts.from_json(value["verbs"]) if "verbs" in value else VerbsFacts(),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no RDMA facts: {error!r}") from error


def facts_from(
    devices: Sequence[IbvDevice],
    ports: Sequence[ThunderboltPort],
    hardware_ports: Mapping[str, str],
    *,
    macos_build: str = "",
    mlx_version: str = "",
) -> RdmaFacts:
    """Puts together what the commands said. Pure."""
    by_interface = {device.interface: device for device in devices if device.interface}
    ends = []
    for port in ports:
        device = by_interface.get(interface_of(port, dict(hardware_ports)))
        if device is not None:
            ends.append(CableEnd(device.name, port.domain_uuid, port.peer_uuids, _refusal(device, port)))
    ends.sort(key=lambda end: end.device)
    refused = ""
    if not devices:
        refused = "there is no RDMA device; it needs Thunderbolt 5 and macOS 26.2 or later"
    elif not ends:
        refused = "no RDMA device belongs to a Thunderbolt port"
    return RdmaFacts(
        macos_build=macos_build,
        mlx_version=mlx_version,
        ends=tuple(ends),
        max_queue_pairs=min((device.limit("max_qp") or 0 for device in devices), default=0),
        max_memory_regions=min((device.limit("max_mr") or 0 for device in devices), default=0),
        refused=refused,
    )


def _refusal(device: IbvDevice, port: ThunderboltPort) -> str:
    return _refusal_of_cable(port) or _refusal_of_device(device)


def _refusal_of_cable(port: ThunderboltPort) -> str:
    if not port.peer_uuids:
        what = f"{', '.join(port.devices)} is" if port.devices else "nothing is"
        return f"{what} connected to Thunderbolt port {port.receptacle}, no Mac"
    if len(port.peer_uuids) > 1:
        return f"several Macs are connected to Thunderbolt port {port.receptacle}; RDMA needs one cable to one Mac"
    if 0 < port.speed_gbit_per_s < MIN_SPEED_GBIT_PER_S:
        return f"the link runs at {port.speed_gbit_per_s:g} Gb/s; RDMA needs Thunderbolt 5 and its cable (80 Gb/s)"
    return ""


def _refusal_of_device(device: IbvDevice) -> str:
    if device.port is None or device.port.state != PORT_ACTIVE:
        state = "has no port" if device.port is None else f"is in state {device.port.state or 'unknown'}"
        return f"{device.name} {state}, not {PORT_ACTIVE}; is RDMA enabled on the other Mac?"
    if not any(gid in _LINK_LOCAL for gid in device.port.gids):
        return f"{device.name} has no link-local GID"
    if not device.port.has_ipv4_gid:
        return (
            f"{device.name} has no GID for IPv4, by which MLX connects; give {device.interface} an IPv4 address "
            f"(the system does so itself where DHCP finds no server, after up to some minutes)"
        )
    return ""


_LINK_LOCAL = ipaddress.IPv6Network("fe80::/10")


async def rdma_facts(
    runner: Runner, *, macos_build: str, mlx_version: str, platform: str = sys.platform
) -> RdmaFacts:
    """Asks the running system. Never fails: what cannot be found out becomes the refusal.

    Args:
        runner: runs the commands; see `run_command`.
        macos_build: of this node.
        mlx_version: of this node.
        platform: of this node, as `sys.platform` has it.
    """
    refused = RdmaFacts(macos_build=macos_build, mlx_version=mlx_version)
    if platform != "darwin":
        return dataclasses.replace(refused, refused="RDMA over Thunderbolt exists on macOS only")
    try:
        if not parse_rdma_ctl(await runner(RDMA_CTL)):
            return dataclasses.replace(
                refused, refused="RDMA is not enabled; run `rdma_ctl enable` in macOS Recovery and restart"
            )
        return facts_from(
            parse_ibv_devinfo(await runner(IBV_DEVINFO)),
            parse_thunderbolt(await runner(PROFILER)),
            parse_hardware_ports(await runner(HARDWARE_PORTS)),
            macos_build=macos_build,
            mlx_version=mlx_version,
        )
    except (OSError, ThunderboltFormatError) as error:
        return dataclasses.replace(refused, refused=f"the RDMA devices cannot be found out: {error}")


async def run_command(command: Sequence[str]) -> str:
    """Runs a command of the system; see `Runner`.

    Raises:
        OSError: it cannot be run, fails, or takes longer than `COMMAND_DEADLINE_SECONDS`.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(COMMAND_DEADLINE_SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        raise OSError(f"{command[0]} failed with exit status {process.returncode}")
    return output.decode(errors="replace")
