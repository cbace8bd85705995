"""The credentials that a node uses now: renewed ones take their place without a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macmesh_daemon.identity import NodeCredentials


class LiveCredentials:
    """Holds the present credentials. Readers ask for `current` each time they begin something new.

    gRPC's own threads read it in handshakes: it is one reference, replaced whole.
    """

    def __init__(self, credentials: NodeCredentials) -> None:
        self._current = credentials

    @property
    def current(self) -> NodeCredentials:
        """What to show and trust from now on."""
        return self._current

    def replace(self, credentials: NodeCredentials) -> None:
        """Use renewed credentials of the same node.

        Raises:
            ValueError: They are another node's, or of another cluster.
        """
        same = (credentials.node_id, credentials.cluster_hash) == (
            self._current.node_id,
            self._current.cluster_hash,
        )
        if not same:
            raise ValueError("the new credentials are another node's")
        self._current = credentials
