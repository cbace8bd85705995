"""What a fetch is told and what it says to do; see `fetching`. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from macmesh_daemon.weights.pieces import Piece

HUB: Final = ""
"""The name of the hub among the sources, which else are node ids."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Times and limits of a fetch.

    Attributes:
        batch_bytes: One call to a node asks for about so much ...
        hub_batch_bytes: ... one to the hub for so much: a slow line must show progress ...
        batch_pieces: ... and either for at most so many pieces.
        streams_per_peer: Calls to one node at once; a busy node gets one.
        hub_streams: Calls to the hub at once.
        voters: Nodes that are asked for the hash of a piece.
        gather_seconds: At the start every node is given this long to say what it has, so that those who can tell of
            a hash are known.
        ask_seconds: Between two looks at what a node holds, where something is still wanted that nobody has.
        retry_min_seconds: Wait after a failure of a source, doubled with each in a row ...
        retry_max_seconds: ... up to this.
        gone_after_failures: A node with so many failures in a row no longer keeps others from the hub.
        orphan_seconds: A piece that no node and no hub has is given up after this: a node may be starting.
        stall_seconds: A fetch to which nothing came for so long has failed; below the cluster's own limit for a
            load that makes no progress.
    """

    batch_bytes: int = 64 << 20
    hub_batch_bytes: int = 16 << 20
    batch_pieces: int = 256
    streams_per_peer: int = 2
    hub_streams: int = 3
    voters: int = 3
    gather_seconds: float = 2.0
    ask_seconds: float = 1.0
    retry_min_seconds: float = 0.25
    retry_max_seconds: float = 15.0
    gone_after_failures: int = 3
    orphan_seconds: float = 10.0
    stall_seconds: float = 90.0


# What happens.


@dataclass(frozen=True, slots=True)
class HoldingsTold:
    """A node said what it has: ``pieces`` of those that are wanted; none where it lacks the model."""

    peer: str
    pieces: frozenset[Piece]
    busy: bool = False
    distance: float = 0.0


@dataclass(frozen=True, slots=True)
class HoldingsFailed:
    """A node did not say what it has."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class HashesTold:
    """A node gave the hashes that a batch waits for; without those that it could not."""

    batch: int
    peer: str
    hashes: Mapping[Piece, str]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PiecesArrived:
    """Pieces of one source were verified and are on the drive."""

    source: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class PieceCorrupt:
    """What a node sent has not the hash that it must have."""

    source: str
    piece: Piece


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """A call came to its end; ``reason`` where that was early."""

    batch: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = HoldingsTold | HoldingsFailed | HashesTold | PiecesArrived | PieceCorrupt | BatchEnded | Tick


# What is to be done.


@dataclass(frozen=True, slots=True)
class AskHoldings:
    """Ask a node what it has; ends in one `HoldingsTold` or `HoldingsFailed`."""

    peer: str


@dataclass(frozen=True, slots=True)
class AskHashes:
    """Ask a node for hashes; ends in one `HashesTold`."""

    batch: int
    peer: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch pieces; ends in one `BatchEnded`, after an event for each piece that came.

    ``expected`` has the SHA-256 of each piece in hex; empty where the source, a hub, states none.
    """

    batch: int
    source: str
    expected: Mapping[Piece, str]


@dataclass(frozen=True, slots=True)
class Abandon:
    """End the calls of a batch; it gets no `BatchEnded`."""

    batch: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Take nothing of this model from that node any more, and say why."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """All pieces are here."""


@dataclass(frozen=True, slots=True)
class Failed:
    """They will not come; what came stays."""

    reason: str
    is_content: bool = False


Effect = AskHoldings | AskHashes | Fetch | Abandon | Quarantine | Finished | Failed
