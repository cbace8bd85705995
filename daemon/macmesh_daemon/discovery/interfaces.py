"""Which network interfaces mDNS uses: a pure choice over what the machine has."""

import asyncio
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ifaddr

# awdl, llw: Apple's peer-to-peer radio, which hops channels and stalls. utun, ipsec, ppp, tun, tap, wg:
# tunnels. gif, stf: transition tunnels. anpi, ap: internal radios. vmenet, vmnet, docker, veth, virbr, br-:
# virtual machines and containers. bridge0 is the Thunderbolt bridge and wanted; bridge100 and up belong to
# virtual machines.
_EXCLUDED = re.compile(
    r"(awdl|llw|utun|ipsec|ppp|tun|tap|wg|gif|stf|anpi|ap|vmenet|vmnet|docker|veth|virbr|br-|zt|tailscale).*"
    r"|bridge[1-9]\d\d+"
)


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address of one network interface."""

    interface: str
    #: Without a scope.
    address: str
    #: Index of the interface; the scope of a link-local IPv6 address.
    index: int = 0

    @property
    def is_ipv4(self) -> bool:
        """Whether it is an IPv4 address."""
        return ":" not in self.address


@dataclass(frozen=True, slots=True)
class InterfaceChoice:
    """The addresses that mDNS binds to and advertises: all IPv4, or all IPv6; empty where there are none.

    One family at a time: IPv4 wherever an interface has it (every Mac's does, self-assigned where nothing
    else), else IPv6, whose link-local addresses can only be dialled with the scope of the interface that
    heard them.
    """

    addresses: tuple[InterfaceAddress, ...]

    @property
    def is_ipv6(self) -> bool:
        """Whether the family is IPv6."""
        return bool(self.addresses) and not self.addresses[0].is_ipv4

    @property
    def texts(self) -> tuple[str, ...]:
        """The addresses without scopes."""
        return tuple(item.address for item in self.addresses)


def choose_interfaces(available: Iterable[InterfaceAddress], wanted: Sequence[str]) -> InterfaceChoice:
    """Choose the addresses for mDNS.

    Args:
        available: What the machine has.
        wanted: Interface names or IP addresses from the configuration. Empty: everything but loopback, AWDL,
            tunnels and bridges of virtual machines.
    """
    usable = sorted(
        (item for item in set(available) if (_is_wanted(item, wanted) if wanted else _is_default(item))),
        key=lambda item: (item.interface, item.is_ipv4, ipaddress.ip_address(item.address).packed),
    )
    ipv4 = tuple(item for item in usable if item.is_ipv4)
    return InterfaceChoice(ipv4 or tuple(item for item in usable if not item.is_ipv4))


def read_interfaces() -> tuple[InterfaceAddress, ...]:
    """Ask the operating system for all addresses of all interfaces. Blocks briefly."""
    found: list[InterfaceAddress] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            # Linux calls an address by its label, such as eth0:1.
            name = adapter.name.partition(":")[0]
            found.append(InterfaceAddress(name, text.partition("%")[0], adapter.index or 0))
    return tuple(found)


async def current_interfaces(wanted: Sequence[str]) -> InterfaceChoice:
    """Read and choose, without blocking the event loop.

    Raises:
        OSError: The system does not say.
    """
    return choose_interfaces(await asyncio.to_thread(read_interfaces), wanted)


def _is_wanted(item: InterfaceAddress, wanted: Sequence[str]) -> bool:
    return item.interface in wanted or item.address in wanted


def _is_default(item: InterfaceAddress) -> bool:
    address = ipaddress.ip_address(item.address)
    return not (
        address.is_loopback
        or address.is_unspecified
        or item.interface == "lo0"
        or _EXCLUDED.fullmatch(item.interface)
    )
