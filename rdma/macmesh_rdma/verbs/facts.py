"""What a node tells of the RDMA devices that its verbs library lists, and why one cannot be used. Pure."""

import dataclasses
import functools
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from macmesh_rdma.verbs.fit import VerbsLimits

PORT_ACTIVE = "PORT_ACTIVE"


@dataclasses.dataclass(frozen=True)
class VerbsPort:
    """A port of a device, and the address by which a peer reaches it.

    Attributes:
        device: Name of its device.
        number: From 1.
        state: Such as "PORT_ACTIVE" or "PORT_DOWN".
        gid_index: Of its address in the port's table; -1 where it has none.
        gid: That address; empty where it has none.
        failure: Why nothing more than the device's name is known; empty where all is.
    """

    device: str
    number: int
    state: str
    gid_index: int = -1
    gid: str = ""
    failure: str = ""

    @property
    def network(self) -> str:
        """The network of its address: of IPv4 the first 24 bits, else the first 64."""
        address = ipaddress.IPv6Address(self.gid)
        mapped = address.ipv4_mapped
        network = ipaddress.ip_network((mapped, 24) if mapped is not None else (address, 64), strict=False)
        return str(network)

    @property
    def refused(self) -> str:
        """Why it cannot be used; empty where it can."""
        if self.failure:
            return f"{self.device} cannot be used: {self.failure}"
        if self.state != PORT_ACTIVE:
            return f"port {self.number} of {self.device} is in state {self.state or 'unknown'}, not {PORT_ACTIVE}"
        if self.gid_index < 0:
            return f"port {self.number} of {self.device} has no GID, by which a peer could reach it"
        return ""


@dataclasses.dataclass(frozen=True)
class VerbsFacts:
    """What a node tells of its verbs library. Plain data, told to others as JSON.

    Attributes:
        ports: The first port of each device, by its name.
        limits: What each of its devices can have; None where it was not told.
        quarantined: Node ids of peers with which links over these devices are in quarantine, and why.
        refused: Why none of it can be used; empty where it can.
    """

    ports: tuple[VerbsPort, ...] = ()
    limits: VerbsLimits | None = None
    quarantined: tuple[tuple[str, str], ...] = ()
    refused: str = ""

    @property
    def is_told(self) -> bool:
        """Whether the library was asked at all."""
        return bool(self.ports or self.refused or self.quarantined)

    def port_of(self, device: str) -> VerbsPort | None:
        """The port of a device; None where there is no such device."""
        return next((port for port in self.ports if port.device == device), None)

    def quarantine_of(self, node_id: str) -> str:
        """Why links to a node are in quarantine; empty where they are not."""
        return next((reason for peer, reason in self.quarantined if peer == node_id), "")

    def with_refusal(self, refused: str) -> Self:
        """The same, refused where it is not refused already."""
        return dataclasses.replace(self, refused=self.refused or refused)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `to_json` made.

        Raises:
            ValueError: it has another form.
        """
        try:
            return cls(
                ports=tuple(
                    VerbsPort(
                        device=str(port["device"]),
                        number=int(port["number"]),
                        state=str(port["state"]),
                        gid_index=int(port["gid_index"]),
                        gid=str(port["gid"]),
                        failure=str(port["failure"]),
                    )
                    for port in value["ports"]
                ),
                limits=VerbsLimits.from_json(value["limits"]) if value["limits"] else None,
                quarantined=tuple((str(peer), str(reason)) for peer, reason in value["quarantined"]),
                refused=str(value["refused"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no facts of a verbs library: {error!r}") from error


def facts_of(devices: Iterable[Mapping[str, Any]]) -> VerbsFacts:
    """The facts in what `_group.verbs_devices` listed."""
    listed = sorted(devices, key=lambda device: str(device["name"]))
    limits = [VerbsLimits.from_json(device["limits"]) for device in listed if not device["failure"]]
    return VerbsFacts(
        ports=tuple(map(_first_port, listed)),
        limits=functools.reduce(VerbsLimits.common, limits) if limits else None,
        refused="" if listed else "the verbs library lists no RDMA device",
    )


def _first_port(device: Mapping[str, Any]) -> VerbsPort:
    name = str(device["name"])
    for port in device["ports"]:
        index, gid = _best_gid(port["gids"])
        return VerbsPort(name, int(port["number"]), str(port["state"]), index, gid, str(device["failure"]))
    return VerbsPort(name, 0, "", failure=str(device["failure"]) or "it has no port")


def _best_gid(gids: Sequence[tuple[int, str]]) -> tuple[int, str]:
    """Index and text of the address to use: one for IPv4 where there is one, as Apple's driver connects by no other."""
    found = [(index, address) for index, text in gids if (address := _address(text)) is not None]
    for index, address in found:
        if address.ipv4_mapped is not None:
            return index, f"::ffff:{address.ipv4_mapped}"
    return (found[0][0], str(found[0][1])) if found else (-1, "")


def _address(text: str) -> ipaddress.IPv6Address | None:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    return address if int(address) else None
