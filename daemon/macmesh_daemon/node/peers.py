"""Channels to the other nodes, by node id."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from macmesh.v1 import peer_pb2_grpc
from macmesh_daemon.node.tls import open_channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from macmesh.v1.peer_pb2_grpc import PeerServiceAsyncStub
    from macmesh_daemon.identity import NodeCredentials
    from macmesh_daemon.node.live_credentials import LiveCredentials

#: Addresses kept of one peer, the newest first.
MAX_ADDRESSES = 8
#: Calls on a connection that is given up get this long to end.
RETIREMENT_GRACE_SECONDS = 1.0
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
        self._told: dict[str, tuple[int, frozenset[str]]] = {}
        self._retired: list[grpc.aio.Channel] = []
        self._outlived: list[grpc.aio.Channel] = []
        self._has_retired = asyncio.Event()
        self._watchers: dict[grpc.aio.Channel, asyncio.Task[None]] = {}
        self._watch_anew: Callable[[str, grpc.aio.Channel], None] | None = None

    def learn(self, node_id: str, addresses: Iterable[str]) -> None:
        """Try these addresses of the peer first from now on, and older ones behind them.

        An address that is not named any more may be good again tomorrow, so it is kept as a last resort. News
        never costs a connection that works.
        """
        merged = tuple(dict.fromkeys((*addresses, *self.addresses(node_id))))[:MAX_ADDRESSES]
        if merged:
            self._addresses[node_id] = merged

    def is_news(self, node_id: str, boot_nonce: int, addresses: Iterable[str]) -> bool:
        """Whether the peer says something else of itself than the last time: it started anew, or it moved."""
        told = (boot_nonce, frozenset(addresses))
        before, self._told[node_id] = self._told.get(node_id), told
        return before != told

    def redial(self) -> None:
        """Connect anew to everybody at the next call: after a sleep, every connection may be dead unnoticed."""
        links, self._links = self._links, {}
        for link in links.values():
            self._retire(link.channel)

    def own_addresses(self, node_id: str) -> tuple[str, ...]:
        """The addresses that the peer said of itself last; all that are known where it never did."""
        told = self._told.get(node_id)
        return tuple(sorted(told[1])) if told is not None and told[1] else self.addresses(node_id)

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
        if link is not None and link.addresses != addresses and not _works(link.channel):
            self._retire(link.channel)
        elif link is not None and link.credentials is not credentials:
            self._outlived.append(link.channel)
            self._unwatch(link.channel)
        elif link is not None:
            return link
        channel = open_channel(grpc_target(addresses), credentials, expected_node_id=node_id)
        stub: PeerServiceAsyncStub = peer_pb2_grpc.PeerServiceStub(channel)
        self._links[node_id] = _Link(addresses, channel, stub, credentials)
        if self._watch_anew is not None:
            self._watch_anew(node_id, channel)
        return self._links[node_id]

    async def renew(self) -> None:
        """Open every connection anew with the present credentials; calls on the old ones may end in peace."""
        for node_id in list(self._links):
            self.stub(node_id)
        outlived = list(self._outlived)
        await asyncio.gather(*(channel.close(grace=RENEWAL_GRACE_SECONDS) for channel in outlived))
        self._outlived = [channel for channel in self._outlived if channel not in outlived]

    async def watch(self, lost: Callable[[str], None]) -> None:
        """Call ``lost(node_id)`` whenever a connection ends that this node did not end, until cancelled."""
        async with asyncio.TaskGroup() as tasks:

            def begin(node_id: str, channel: grpc.aio.Channel) -> None:
                watching = _watch(channel, lambda: lost(node_id))
                self._watchers[channel] = tasks.create_task(watching, name=f"watch {node_id[:8]}")

            for node_id, link in self._links.items():
                begin(node_id, link.channel)
            self._watch_anew = begin
            try:
                await asyncio.Event().wait()
            finally:
                self._watch_anew = None
                self._watchers.clear()

    def _unwatch(self, channel: grpc.aio.Channel) -> None:
        watcher = self._watchers.pop(channel, None)
        if watcher is not None:
            watcher.cancel()

    def _retire(self, channel: grpc.aio.Channel) -> None:
        self._unwatch(channel)
        self._retired.append(channel)
        self._has_retired.set()

    async def tidy(self) -> None:
        """Close the channels that others replaced, until cancelled."""
        while True:
            await self._has_retired.wait()
            self._has_retired.clear()
            retired = list(self._retired)
            await asyncio.gather(*(channel.close(grace=RETIREMENT_GRACE_SECONDS) for channel in retired))
            self._retired = [channel for channel in self._retired if channel not in retired]

    async def close(self) -> None:
        """Close every channel."""
        links, self._links = self._links, {}
        for link in links.values():
            self._unwatch(link.channel)
            await link.channel.close(grace=None)
        for channel in (*self._retired, *self._outlived):
            await channel.close(grace=None)
        self._retired.clear()
        self._outlived.clear()


async def _watch(channel: grpc.aio.Channel, lost: Callable[[], None]) -> None:
    """A wait for a change never ends on a channel that is closed here: whoever closes it cancels this."""
    state = channel.get_state()
    while state is not grpc.ChannelConnectivity.SHUTDOWN:
        await channel.wait_for_state_change(state)
        before, state = state, channel.get_state()
        if before is grpc.ChannelConnectivity.READY:
            lost()


def _works(channel: grpc.aio.Channel) -> bool:
    return channel.get_state() is grpc.ChannelConnectivity.READY
