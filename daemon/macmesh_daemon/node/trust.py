"""Everything about trust that runs beside the core: the join door, renewal, and cutting off who was evicted."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from macmesh_daemon.config import split_address
from macmesh_daemon.discovery import join_address
from macmesh_daemon.identity.certificates import end_of_ca
from macmesh_daemon.identity.renewal import ca_warning_of, warning_of
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.issuer import Issuer
from macmesh_daemon.node.join_door import JoinDoor
from macmesh_daemon.node.renewer import Renewer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from macmesh_daemon.clock import Clock
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.config import Config
    from macmesh_daemon.node.driver import CoreDriver
    from macmesh_daemon.node.gate import Gate
    from macmesh_daemon.node.live_credentials import LiveCredentials
    from macmesh_daemon.node.peers import PeerPool
    from macmesh_daemon.node.sources import Sources

_log = get_logger(part="trust")

#: How long the answer to a new token waits for the door to open.
_DOOR_DEADLINE_SECONDS = 3.0


def denied_ids(view: ClusterView) -> frozenset[str]:
    """Whom the cluster has shut out, by the newest document that this node has seen committed or stored.

    A node that just started has a stored document and knows of no commit yet: an eviction must hold then, too.
    """
    documents = (view.document, view.stored_document)
    return frozenset(i for document in documents if document is not None for i in document.denied_node_ids)


def _changed_from(known: frozenset[str]) -> Callable[[ClusterView], bool]:
    return lambda view: denied_ids(view) != known


class Denied:
    """Answers for the gate whether an id was shut out; at each call, so it must be quick."""

    def __init__(self) -> None:
        self._view: ClusterView | None = None
        self._ids: frozenset[str] = frozenset()
        self.read: Callable[[], ClusterView] | None = None

    def __call__(self, caller_id: str) -> bool:
        """Whether the cluster shut it out, as this node knows now."""
        if self.read is None:
            return False  # the core does not run yet, and no door is open
        view = self.read()
        if view is not self._view:
            self._view, self._ids = view, denied_ids(view)
        return caller_id in self._ids


class Trust:
    """Owns the issuer, the join door and the renewer of a node."""

    def __init__(
        self,
        *,
        config: Config,
        credentials: LiveCredentials,
        driver: CoreDriver,
        peers: PeerPool,
        sources: Sources,
        gate: Gate,
        denied: Denied,
        addresses: Callable[[], tuple[str, ...]],
        told_evicted: Callable[[], bool],
        clock: Clock,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        self._driver = driver
        self._peers = peers
        self._sources = sources
        self._gate = gate
        self._node_id = credentials.current.node_id
        self._own_addresses = addresses
        self._told_evicted = told_evicted
        self._credentials = credentials
        self.wall_seconds = wall_seconds
        self.issuer = Issuer(
            config.data_dir, node_id=self._node_id, wall_seconds=wall_seconds, is_denied=denied
        )
        self.door = JoinDoor(
            host=config.listen_host,
            port=config.join_port,
            credentials=credentials,
            issuer=self.issuer,
            known_nodes=self.known_nodes,
            clock=clock,
            wall_seconds=wall_seconds,
            tell_port=sources.set_pairing,
        )
        self.renewer = Renewer(
            data_dir=config.data_dir,
            credentials=credentials,
            issuer=self.issuer,
            peers=peers,
            members=lambda: [node_id for node_id, _ in self.known_nodes() if node_id != self._node_id],
            clock=clock,
            wall_seconds=wall_seconds,
        )

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin everything; it ends with the task group."""
        tasks.create_task(self.door.run(), name="join door")
        tasks.create_task(self.renewer.run(), name="certificate renewal")
        tasks.create_task(self._cut_off(), name="cut off evicted callers")

    def health(self) -> tuple[str, ...]:
        """What a person should know."""
        now = datetime.fromtimestamp(self.wall_seconds(), UTC)
        credentials = self._credentials.current
        warnings = (
            warning_of(credentials.expires_at, now),
            ca_warning_of(end_of_ca(credentials.ca_pem), now),
        )
        return (*self.door.health(), *(line for line in warnings if line), *self._evicted())

    def known_nodes(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """This node and the other members with their addresses."""
        yield self._node_id, self._own_addresses()
        document = self._driver.view.stored_document
        for member in document.members if document else ():
            if member.node_id != self._node_id:
                yield member.node_id, self._peers.addresses(member.node_id) or member.addresses

    async def door_addresses(self) -> list[str]:
        """Where the join door is; empty where it did not open in time."""
        try:
            async with asyncio.timeout(_DOOR_DEADLINE_SECONDS):
                port = await self.door.opened()
        except TimeoutError:
            return []
        hosts = (split_address(address)[0] for address in self._own_addresses())
        return [join_address(host, port) for host in hosts]

    async def _cut_off(self) -> None:
        known: frozenset[str] = frozenset()
        while True:
            view = await self._driver.wait_until(_changed_from(known), math.inf)
            now_denied = denied_ids(view)
            for shut_out in sorted(now_denied - known):
                cut = self._gate.shut_out(shut_out)
                self._sources.forget(shut_out)
                _log.warning("caller shut out", caller=shut_out, calls_ended=cut)
            known = now_denied

    def _evicted(self) -> tuple[str, ...]:
        # The document that says so may never reach who is in it; then another member's refusal does.
        if self._node_id not in denied_ids(self._driver.view) and not self._told_evicted():
            return ()
        return (
            "this node was evicted: to come back it needs a new identity (an empty data_dir) and a token",
        )
