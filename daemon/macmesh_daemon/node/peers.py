"""Channels to the other nodes, by node id."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh.v1 import peer_pb2_grpc
from macmesh_daemon.node.tls import open_channel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import grpc

    from macmesh.v1.peer_pb2_grpc import PeerServiceAsyncStub
    from macmesh_daemon.identity import NodeCredentials
    from macmesh_daemon.node.live_credentials import LiveCredentials

#: Calls that run while certificates are renewed may take this much longer to end.
RENEWAL_GRACE_SECONDS = 86400.0


def grpc_target(addresses: Sequence[str]) -> str:
    """One gRPC target for all addresses of the first one's family, tried in order.

    Raises:
        ValueError: there is no address.
    """
    if not addresses:
        raise ValueError("a peer needs at least one address")
    by_scheme: dict[str, list[str]] = {}
    first = ""
    for address in addresses:
        host = address.rpartition(":")[0].strip("[]").partition("%")[0]
        try:
            scheme = f"ipv{ipaddress.ip_address(host).version}"
        except ValueError:
            scheme = "dns"
        first = first or scheme
        by_scheme.setdefault(scheme, []).append(address)
    if first == "dns":
        return f"dns:///{by_scheme[first][0]}"
    return f"{first}:{','.join(by_scheme[first])}"


@dataclass(frozen=True, slots=True)
class _Link:
    addresses: tuple[str, ...]
    channel: grpc.aio.Channel
    stub: PeerServiceAsyncStub
    #: What the connection was opened with; renewed credentials take a new one.
    credentials: NodeCredentials


class PeerPool:
    """Keeps one channel per peer, verified to end at that peer's certificate."""

    def __init__(self, credentials: LiveCredentials) -> None:
        self._credentials = credentials
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._links: dict[str, _Link] = {}
        self._boot_nonces: dict[str, int] = {}
        self._retired: list[grpc.aio.Channel] = []
        self._outlived: list[grpc.aio.Channel] = []

    def learn(self, node_id: str, addresses: Iterable[str]) -> None:
        """Use these addresses for the peer from now on; an empty list changes nothing."""
        known = tuple(addresses)
        if known:
            self._addresses[node_id] = known

    def is_new_start(self, node_id: str, boot_nonce: int) -> bool:
        """Whether the peer was not met since it started; from now on it was."""
        known = self._boot_nonces.get(node_id)
        self._boot_nonces[node_id] = boot_nonce
        return known != boot_nonce

    def addresses(self, node_id: str) -> tuple[str, ...]:
        """The addresses in use; empty where none is known."""
        return self._addresses.get(node_id, ())

    def stub(self, node_id: str) -> PeerServiceAsyncStub | None:
        """The peer's stub, or None where no address is known."""
        addresses = self.addresses(node_id)
        if not addresses:
            return None
        return self._link(node_id, addresses).stub

    def channel(self, node_id: str) -> grpc.aio.Channel | None:
        """The peer's channel, for other services than the peer service, or None where no address is known."""
        addresses = self.addresses(node_id)
        return self._link(node_id, addresses).channel if addresses else None

    def _link(self, node_id: str, addresses: tuple[str, ...]) -> _Link:
        link = self._links.get(node_id)
        credentials = self._credentials.current
        if link is not None and link.addresses != addresses:
            self._retired.append(link.channel)
        elif link is not None and link.credentials is not credentials:
            self._outlived.append(link.channel)
        elif link is not None:
            return link
        channel = open_channel(grpc_target(addresses), credentials, expected_node_id=node_id)
        stub: PeerServiceAsyncStub = peer_pb2_grpc.PeerServiceStub(channel)
        self._links[node_id] = _Link(addresses, channel, stub, credentials)
        return self._links[node_id]

    async def renew(self) -> None:
        """Open every connection anew with the present credentials; calls on the old ones may end in peace."""
        for node_id in list(self._links):
            self.stub(node_id)
        outlived = list(self._outlived)
        await asyncio.gather(*(channel.close(grace=RENEWAL_GRACE_SECONDS) for channel in outlived))
        self._outlived = [channel for channel in self._outlived if channel not in outlived]

    async def close_retired(self) -> None:
        """Close the channels that a change of address replaced."""
        retired, self._retired = self._retired, []
        for channel in retired:
            await channel.close(grace=1.0)

    async def close(self) -> None:
        """Close every channel."""
        links, self._links = self._links, {}
        for link in links.values():
            await link.channel.close(grace=None)
        for channel in (*self._retired, *self._outlived):
            await channel.close(grace=None)
        self._retired.clear()
        self._outlived.clear()
