"""A bounded memory of candidates by node id: strangers can fill it, but not the machine."""

from collections import OrderedDict

from macmesh_daemon.discovery.base import Candidate

MAX_CANDIDATES = 256


class CandidateBook:
    """Keeps the candidates seen last; the one not seen for longest goes first."""

    def __init__(self, capacity: int = MAX_CANDIDATES) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[str, Candidate] = OrderedDict()

    def put(self, candidate: Candidate) -> None:
        """Remember a candidate that has a node id, instead of an older one of the same id.

        Raises:
            ValueError: It has no node id.
        """
        if candidate.node_id is None:
            raise ValueError("a candidate without a node id cannot be kept by id")
        self._entries[candidate.node_id] = candidate
        self._entries.move_to_end(candidate.node_id)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def drop(self, node_id: str) -> None:
        """Forget a node, where it is known."""
        self._entries.pop(node_id, None)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._entries

    def candidates(self) -> tuple[Candidate, ...]:
        """Return all, the one seen last at the end."""
        return tuple(self._entries.values())
