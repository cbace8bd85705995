"""Who this node is, as it tells the others, itself and whoever it dials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh.v1 import peer_pb2
from macmesh_daemon.cluster.events import CandidateVerified
from macmesh_daemon.node.codec import to_proto
from macmesh_daemon.node.peer_service import PROTOCOL_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from macmesh_daemon.cluster.messages import NodeFacts
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.identity import Start


class Introduction:
    """Makes the messages of a Hello from what the node knows of itself now.

    Args:
        node_id: This node.
        cluster_prefix: Names its cluster.
        start: Of its daemon.
        facts: Its machine, now.
        addresses: Where it is reached, now.
        view: The cluster, now.
    """

    def __init__(
        self,
        *,
        node_id: str,
        cluster_prefix: str,
        start: Start,
        facts: Callable[[], NodeFacts],
        addresses: Callable[[], tuple[str, ...]],
        view: Callable[[], ClusterView],
    ) -> None:
        self._node_id = node_id
        self._cluster_prefix = cluster_prefix
        self._start = start
        self._facts = facts
        self._addresses = addresses
        self._view = view

    def answer(self) -> peer_pb2.HelloResponse:
        """For a node that said hello."""
        return peer_pb2.HelloResponse(
            protocol_version=PROTOCOL_VERSION,
            incarnation=self._start.incarnation,
            boot_nonce=self._start.boot_nonce,
            addresses=self._addresses(),
            facts=to_proto(self._facts()),
            coordinator_node_id=self._view().coordinator_node_id,
            has_cluster=self._has_cluster,
        )

    def hello(self, discovery: str) -> peer_pb2.HelloRequest:
        """For a node that was found by `discovery`."""
        return peer_pb2.HelloRequest(
            protocol_version=PROTOCOL_VERSION,
            cluster=self._cluster_prefix,
            incarnation=self._start.incarnation,
            boot_nonce=self._start.boot_nonce,
            addresses=self._addresses(),
            facts=to_proto(self._facts()),
            discovery=discovery,
            has_cluster=self._has_cluster,
        )

    def to_itself(self) -> CandidateVerified:
        """For the node's own cluster core: its addresses have changed."""
        return CandidateVerified(
            node_id=self._node_id,
            addresses=self._addresses(),
            facts=self._facts(),
            boot_nonce=self._start.boot_nonce,
            discovery="self",
            has_cluster=self._has_cluster,
        )

    def known_members(self) -> list[tuple[str, tuple[str, ...]]]:
        """The other members that have an address, by the newest stored document."""
        document = self._view().stored_document
        members = document.members if document else ()
        return [(m.node_id, m.addresses) for m in members if m.node_id != self._node_id and m.addresses]

    @property
    def _has_cluster(self) -> bool:
        return self._view().stored_document is not None
