"""All sources of candidates of a node, as the configuration wants them."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING

from macmesh_daemon.discovery import (
    Advertisement,
    Hints,
    MdnsDiscovery,
    PeerBook,
    StaticDiscovery,
    current_interfaces,
)
from macmesh_daemon.discovery.txt import PROTOCOL_VERSION

if TYPE_CHECKING:
    import asyncio

    from macmesh_daemon.clock import Clock
    from macmesh_daemon.cluster.messages import NodeFacts
    from macmesh_daemon.config import Config
    from macmesh_daemon.discovery import CandidateCallback, Discovery
    from macmesh_daemon.identity import NodeCredentials

_PEER_BOOK = "peers.json"


async def own_hosts(config: Config) -> tuple[str, ...]:
    """The IP addresses under which peers reach this node."""
    announced = config.announced_addresses()
    if announced:
        return announced
    choice = await current_interfaces(config.mdns_interfaces)
    return choice.texts


class Sources:
    """Static seeds, the peers of the last run and mDNS; any one suffices, and none can stop the node."""

    def __init__(
        self,
        *,
        config: Config,
        credentials: NodeCredentials,
        facts: NodeFacts,
        incarnation: int,
        port: int,
        clock: Clock,
    ) -> None:
        self._advertisement = Advertisement(
            node_id=credentials.node_id,
            port=port,
            hints=_hints(credentials, facts, incarnation),
            addresses=config.announced_addresses(),
        )
        self._peers = PeerBook(config.data_dir / _PEER_BOOK, own_node_id=credentials.node_id, clock=clock)
        self._sources: list[Discovery] = [self._peers]
        if config.seeds:
            self._sources.append(StaticDiscovery(config.seeds, clock=clock))
        self._mdns: MdnsDiscovery | None = None
        if config.mdns:
            self._mdns = MdnsDiscovery(
                self._advertisement,
                interfaces=config.mdns_interfaces or _loopback_only(config.listen_host),
                announce_interval_seconds=config.mdns_announce_interval_seconds,
                lonely_interval_seconds=config.mdns_lonely_interval_seconds,
                clock=clock,
            )
            self._sources.append(self._mdns)

    def start(self, found: CandidateCallback, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Run every source; cancel the tasks to stop them."""
        return [
            tasks.create_task(source.run(found), name=f"discovery by {source.source}")
            for source in self._sources
        ]

    def remember(self, node_id: str, addresses: tuple[str, ...]) -> None:
        """Keep the addresses of a verified node for the next start."""
        if addresses:
            self._peers.remember(node_id, addresses)

    def forget(self, node_id: str) -> None:
        """Look no more for a node that was evicted."""
        self._peers.forget(node_id)

    def set_pairing(self, join_port: int) -> None:
        """Announce that the join door is open at that port; 0 where it is shut."""
        hints = replace(self._advertisement.hints, pairing_open=join_port > 0, join_port=join_port)
        self._advertisement = replace(self._advertisement, hints=hints)
        if self._mdns is not None:
            self._mdns.advertise(self._advertisement)

    def set_lonely(self, lonely: bool) -> None:
        """Announce more often while peers or a coordinator are missed."""
        if self._mdns is not None:
            self._mdns.set_lonely(lonely)

    def refresh(self) -> None:
        """Look again now: after waking up."""
        for source in self._sources:
            source.refresh()

    def health(self) -> tuple[str, ...]:
        """What is wrong with the sources now."""
        return tuple(line for source in self._sources for line in source.health())


def _loopback_only(listen_host: str) -> tuple[str, ...]:
    """A node that listens on loopback alone has nothing to tell the network."""
    return (listen_host,) if ipaddress.ip_address(listen_host).is_loopback else ()


def _hints(credentials: NodeCredentials, facts: NodeFacts, incarnation: int) -> Hints:
    return Hints(
        protocol_version=PROTOCOL_VERSION,
        cluster_prefix=credentials.cluster_prefix,
        ram_bytes=facts.ram_bytes,
        usable_bytes=facts.usable_bytes,
        bandwidth_gb_per_s=facts.bandwidth_gb_per_s,
        chip=facts.chip,
        host_id=facts.host_id,
        incarnation=incarnation,
    )
