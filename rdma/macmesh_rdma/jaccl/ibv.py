"""What ``ibv_devices``, ``ibv_devinfo -v`` and ``rdma_ctl status`` say about a machine's RDMA devices. Pure.

The formats are those of rdma-core's tools, which macOS 26.2 and later ship for RDMA over Thunderbolt (Apple's
technote TN3205). A device is called after its network interface: ``rdma_en3`` for ``en3``.
"""

import dataclasses
import ipaddress
import re

_VALUE = re.compile(r"^(?P<name>[A-Za-z0-9_]+)\s*:\s*(?P<value>.*)$")
_GID = re.compile(r"^GID\[\s*\d+\]\s*:\s*(?P<value>\S+)")
_LISTED = re.compile(r"^(?P<name>\S+)\s+(?P<guid>[0-9a-fA-F:]{16,23})$")
PORT_ACTIVE = "PORT_ACTIVE"
DEVICE_PREFIX = "rdma_"


@dataclasses.dataclass(frozen=True)
class IbvPort:
    """One port of a device.

    Attributes:
        number: from 1.
        state: such as "PORT_ACTIVE" or "PORT_DOWN".
        link_layer: such as "Thunderbolt" or "Ethernet"; empty where it was not told.
        gids: its addresses that are not zero, in the order of the table.
    """

    number: int
    state: str = ""
    link_layer: str = ""
    gids: tuple[ipaddress.IPv6Address, ...] = ()

    @property
    def has_ipv4_gid(self) -> bool:
        """Whether one of them stands for an IPv4 address; MLX connects by no other."""
        return any(gid.ipv4_mapped is not None for gid in self.gids)


@dataclasses.dataclass(frozen=True)
class IbvDevice:
    """One device.

    Attributes:
        name: such as "rdma_en3".
        transport: such as "Thunderbolt" or "InfiniBand".
        limits: what ``-v`` tells in numbers, such as ``max_qp`` and ``max_mr``.
        ports: its ports.
    """

    name: str
    transport: str = ""
    limits: tuple[tuple[str, int], ...] = ()
    ports: tuple[IbvPort, ...] = ()

    @property
    def interface(self) -> str:
        """The network interface that it belongs to; empty where the name tells none."""
        return self.name.removeprefix(DEVICE_PREFIX) if self.name.startswith(DEVICE_PREFIX) else ""

    @property
    def port(self) -> IbvPort | None:
        """Its first port, the only one that MLX uses."""
        return self.ports[0] if self.ports else None

    def limit(self, name: str) -> int | None:
        """A limit, None where it was not told."""
        return dict(self.limits).get(name)


def parse_ibv_devices(output: str) -> tuple[str, ...]:
    """Names of the devices in the output of ``ibv_devices``, in its order; none where it lists none."""
    matches = (_LISTED.match(line.strip()) for line in output.splitlines())
    return tuple(match["name"] for match in matches if match)


def parse_ibv_devinfo(output: str) -> tuple[IbvDevice, ...]:
    """The devices in the output of ``ibv_devinfo -v``; lines that say nothing known are passed over."""
    devices: list[IbvDevice] = []
    for raw in output.splitlines():
        line = raw.strip()
        if gid := _GID.match(line):
            _add_gid(devices, gid["value"])
        elif value := _VALUE.match(line):
            _add_value(devices, value["name"], value["value"].strip())
    return tuple(devices)


def parse_rdma_ctl(output: str) -> bool:
    """Whether the output of ``rdma_ctl status`` says that RDMA over Thunderbolt is enabled."""
    return output.strip().lower() == "enabled"


def _add_value(devices: list[IbvDevice], name: str, value: str) -> None:
    word = value.partition("(")[0].strip()
    if name == "hca_id":
        devices.append(IbvDevice(name=value))
        return
    if not devices:
        return
    device = devices[-1]
    if name == "port" and word.isdecimal():
        devices[-1] = dataclasses.replace(device, ports=(*device.ports, IbvPort(int(word))))
    elif name == "transport":
        devices[-1] = dataclasses.replace(device, transport=word)
    elif device.ports:
        port = device.ports[-1]
        if name == "state":
            port = dataclasses.replace(port, state=word)
        elif name == "link_layer":
            port = dataclasses.replace(port, link_layer=word)
        devices[-1] = dataclasses.replace(device, ports=(*device.ports[:-1], port))
    elif word.isdecimal():
        devices[-1] = dataclasses.replace(device, limits=(*device.limits, (name, int(word))))


def _add_gid(devices: list[IbvDevice], text: str) -> None:
    if not devices or not devices[-1].ports:
        return
    try:
        gid = ipaddress.IPv6Address(text.rstrip(","))
    except ValueError:
        return
    if gid != ipaddress.IPv6Address(0):
        device = devices[-1]
        port = dataclasses.replace(device.ports[-1], gids=(*device.ports[-1].gids, gid))
        devices[-1] = dataclasses.replace(device, ports=(*device.ports[:-1], port))
