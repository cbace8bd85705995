"""A network of one machine: a namespace per node, a bridge as the switch, and what goes wrong with both."""

from __future__ import annotations

import asyncio

MDNS_PORT = 5353
_DEADLINE_SECONDS = 20.0
#: As /24 networks.
PREFIX = "10.77.0"


async def sh(command: str) -> str:
    """Run a command of simple words and give its output.

    Raises:
        RuntimeError: It failed; the message holds what it wrote.
    """
    process = await asyncio.create_subprocess_exec(
        *command.split(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(_DEADLINE_SECONDS):
        output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"`{command}` ended with {process.returncode}: {output.decode().strip()}")
    return output.decode()


class Lan:
    """One Ethernet segment. Machines are named; the n-th has the address 10.77.0.n."""

    def __init__(self) -> None:
        self._machines: dict[str, str] = {}

    async def build(self) -> None:
        """Lay the cable."""
        await sh("ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
        await sh("ip link set br0 up")

    async def add(self, name: str) -> str:
        """Plug in one more machine; returns its address."""
        address = f"{PREFIX}.{len(self._machines) + 1}"
        self._machines[name] = address
        await sh(f"ip netns add {name}")
        await sh(f"ip netns exec {name} sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
        await sh(f"ip link add e0 netns {name} type veth peer name p-{name}")
        await sh(f"ip link set p-{name} master br0 up")
        for command in (f"addr add {address}/24 dev e0", "link set lo up", "link set e0 up"):
            await sh(f"ip -n {name} {command}")
        await sh(f"ip -n {name} route add 224.0.0.0/4 dev e0")
        for command in (
            "add table inet f",
            "add chain inet f i { type filter hook input priority 0 ; }",
        ):
            await self._nft(name, command)
        return address

    def address(self, name: str) -> str:
        """The address of a machine."""
        return self._machines[name]

    async def unplug(self, name: str) -> None:
        """Cut a machine off; its interface stays up, as with a switch port that is off."""
        await sh(f"ip link set p-{name} nomaster")

    async def plug(self, name: str) -> None:
        """Undo `unplug`."""
        await sh(f"ip link set p-{name} master br0")

    async def deafen(self, name: str, to: str) -> None:
        """`name` no longer receives what `to` sends; the other direction is left as it is."""
        await self._nft(name, f"add rule inet f i ip saddr {self._machines[to]} drop")

    async def lose(self, name: str, percent: int) -> None:
        """A machine loses this share of what it is sent."""
        await self._nft(name, f"add rule inet f i iifname e0 numgen random mod 100 < {percent} drop")

    async def block_mdns(self, name: str) -> None:
        """A machine receives no multicast DNS."""
        await self._nft(name, f"add rule inet f i udp dport {MDNS_PORT} drop")

    async def repair(self, name: str) -> None:
        """Undo all but `unplug`."""
        await self._nft(name, "flush chain inet f i")

    async def readdress(self, name: str, last: int) -> str:
        """Give a machine another address, as another lease of DHCP does."""
        new = f"{PREFIX}.{last}"
        await sh(f"ip -n {name} addr del {self._machines[name]}/24 dev e0")
        await sh(f"ip -n {name} addr add {new}/24 dev e0")
        await sh(f"ip -n {name} route replace 224.0.0.0/4 dev e0")
        self._machines[name] = new
        return new

    async def _nft(self, name: str, command: str) -> None:
        await sh(f"ip netns exec {name} nft {command}")
