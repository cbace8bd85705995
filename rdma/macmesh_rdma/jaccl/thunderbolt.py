"""What ``system_profiler`` and ``networksetup`` say about a Mac's Thunderbolt ports. Pure.

Each port is a Thunderbolt domain with a UUID of its own, and shows the UUID of the domain that a directly
connected Mac has at the other end of the cable. So two ports are the two ends of one cable where each shows the
other's UUID.
"""

import dataclasses
import json
import re
from typing import Any

_GB_PER_S = re.compile(r"(\d+(?:\.\d+)?)\s*Gb/s")
_RECEPTACLE_TAG = re.compile(r"receptacle_\d+_tag")
CONNECTED = "receptacle_connected"


class ThunderboltFormatError(ValueError):
    """The output is not what ``system_profiler SPThunderboltDataType -json`` prints."""


@dataclasses.dataclass(frozen=True)
class ThunderboltPort:
    """One port.

    Attributes:
        receptacle: its number, as in "Thunderbolt 3".
        domain_uuid: its own domain, in upper case.
        speed_gbit_per_s: of the link, where something is connected; 0 where nothing is, or it was not told.
        peer_uuids: domains of Macs that are connected to it directly; a dock is none.
        devices: names of all else that is connected to it.
    """

    receptacle: str
    domain_uuid: str
    speed_gbit_per_s: float = 0.0
    peer_uuids: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


def parse_thunderbolt(output: str) -> tuple[ThunderboltPort, ...]:
    """The ports in the output of ``system_profiler SPThunderboltDataType -json``.

    Raises:
        ThunderboltFormatError: it has another form.
    """
    try:
        buses = json.loads(output)["SPThunderboltDataType"]
    except (ValueError, KeyError, TypeError) as error:
        raise ThunderboltFormatError(f"this is no list of Thunderbolt ports: {error!r}") from error
    if not isinstance(buses, list):
        raise ThunderboltFormatError("this is no list of Thunderbolt ports")
    ports = (_port(bus) for bus in buses if isinstance(bus, dict))
    return tuple(port for port in ports if port is not None)


def parse_hardware_ports(output: str) -> dict[str, str]:
    """Interface of each hardware port in the output of ``networksetup -listallhardwareports``."""
    interfaces: dict[str, str] = {}
    name = ""
    for line in output.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "Hardware Port":
            name = value.strip()
        elif key.strip() == "Device" and name:
            interfaces[name] = value.strip()
            name = ""
    return interfaces


def interface_of(port: ThunderboltPort, hardware_ports: dict[str, str]) -> str:
    """The network interface of a port; empty where the system lists none."""
    return hardware_ports.get(f"Thunderbolt {port.receptacle}", "")


def _port(bus: dict[str, Any]) -> ThunderboltPort | None:
    uuid = bus.get("domain_uuid_key")
    tags = [value for key, value in bus.items() if _RECEPTACLE_TAG.fullmatch(key) and isinstance(value, dict)]
    if not isinstance(uuid, str) or not tags:
        return None
    tag = tags[0]
    items = [item for item in bus.get("_items", ()) if isinstance(item, dict)]
    connected = tag.get("receptacle_status_key") == CONNECTED
    speed = _GB_PER_S.search(str(tag.get("current_speed_key", "")))
    return ThunderboltPort(
        receptacle=str(tag.get("receptacle_id_key", "")),
        domain_uuid=uuid.upper(),
        speed_gbit_per_s=float(speed[1]) if speed and connected else 0.0,
        peer_uuids=tuple(str(item["domain_uuid_key"]).upper() for item in items if "domain_uuid_key" in item),
        devices=tuple(
            str(item.get("device_name_key") or item.get("_name", ""))
            for item in items
            if "domain_uuid_key" not in item
        ),
    )
