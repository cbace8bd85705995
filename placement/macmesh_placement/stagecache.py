"""What requests cost in the caches of one stage: what the head of a plan counts while it serves.

The ledger promises a stage bytes for its caches (`cache_budget_bytes`). Any mix of requests may share them as long
as the sum of what each costs (`StageCacheCost`) stays within.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from macmesh_placement.cachecost import CachePiece
from macmesh_placement.checks import Reader
from macmesh_placement.errors import LocalProfileError
from macmesh_placement.ledger import PAGE_BYTES

if TYPE_CHECKING:
    from macmesh_placement.profile import ModelProfile

_FORMAT = "macmesh-stage-cache/1"
#: Lengths whose costs are remembered; a few requests run at a time, each of one length.
_REMEMBERED = 4096


@dataclass(frozen=True)
class StageCacheCost:
    """The cache pieces of one stage, equal ones counted.

    Attributes:
        pieces: Each piece and how many the stage has of it.
        slack_bytes_per_array: What the allocator may lose with each array.
    """

    pieces: tuple[tuple[CachePiece, int], ...]
    slack_bytes_per_array: int = PAGE_BYTES

    def __post_init__(self) -> None:
        for piece, count in self.pieces:
            if count < 1:
                raise LocalProfileError(f"a stage cannot have {count} caches of the kind {piece.kind}")

    @property
    def array_count(self) -> int:
        """Arrays of one request's caches."""
        return sum(piece.array_count * count for piece, count in self.pieces)

    @property
    def slack_bytes(self) -> int:
        """What the allocator may lose with one request's arrays."""
        return self.array_count * self.slack_bytes_per_array

    def reserved_bytes(self, tokens: int) -> int:
        """Bytes of caches that are allocated for so many tokens, prefill aside."""
        return _reserved_bytes(self, tokens)

    def prefill_bytes(self, tokens: int, chunk_tokens: int) -> int:
        """Bytes beyond `reserved_bytes` that windows hold between the prefill steps of such a request."""
        return _prefill_bytes(self, tokens, chunk_tokens)

    def largest_piece_bytes(self, tokens: int) -> int:
        """Bytes of the largest single cache of a request of so many tokens."""
        return _largest_piece_bytes(self, tokens)

    def to_json_text(self) -> str:
        """The pieces with their counts as JSON text, on one line."""
        pieces = [{"count": count, "piece": piece.to_json()} for piece, count in self.pieces]
        document = {
            "format": _FORMAT,
            "slack_bytes_per_array": self.slack_bytes_per_array,
            "pieces": pieces,
        }
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_json_text(cls, text: str) -> StageCacheCost:
        """Reads `to_json_text`'s form.

        Raises:
            LocalProfileError: It is not of that form; the message names the field.
        """
        try:
            document: Any = json.loads(text)
        except ValueError as error:
            raise LocalProfileError(f"stage cache: not JSON: {error}") from error
        reader = Reader(document, "stage cache", LocalProfileError)
        reader.only(("format", "slack_bytes_per_array", "pieces"))
        if reader.text("format") != _FORMAT:
            raise LocalProfileError(f"stage cache: format is not {_FORMAT}")
        pieces = []
        for index, item in enumerate(reader.array("pieces")):
            where = f"stage cache.pieces[{index}]"
            entry = Reader(item, where, LocalProfileError)
            entry.only(("count", "piece"))
            piece = CachePiece.from_json(entry.get("piece"), f"{where}.piece")
            pieces.append((piece, entry.integer("count", minimum=1)))
        return cls(tuple(pieces), reader.integer("slack_bytes_per_array"))


@lru_cache(_REMEMBERED)
def _reserved_bytes(cost: StageCacheCost, tokens: int) -> int:
    return sum(piece.reserved_bytes(tokens) * count for piece, count in cost.pieces)


@lru_cache(_REMEMBERED)
def _prefill_bytes(cost: StageCacheCost, tokens: int, chunk_tokens: int) -> int:
    chunk = min(chunk_tokens, tokens)
    return sum(piece.lasting_prefill_bytes(tokens, chunk) * count for piece, count in cost.pieces)


@lru_cache(_REMEMBERED)
def _largest_piece_bytes(cost: StageCacheCost, tokens: int) -> int:
    return max((piece.reserved_bytes(tokens) for piece, _ in cost.pieces), default=0)


def stage_cache_cost(profile: ModelProfile, first_layer: int, end_layer: int) -> StageCacheCost:
    """The caches of layers ``first_layer`` up to, without, ``end_layer``, and the head's own on the first stage."""
    pieces = [piece for layer in profile.layers[first_layer:end_layer] for piece in layer.caches]
    if first_layer == 0:
        pieces += profile.head_caches
    return StageCacheCost(tuple(Counter(pieces).items()))


def cache_budget_bytes(
    cost: StageCacheCost, *, context_tokens: int, slots: int, prefill_chunk_tokens: int
) -> int:
    """What the stage's ledger holds for caches: ``slots`` whole contexts.

    That is the ledger's lines ``cache`` and ``cache_prefill``, and of ``allocator_slack`` the part of the slots'
    arrays. ``cache_prefill`` belongs to it, as windows keep those bytes from one prefill step to the next; what a
    step needs only while it runs is ``prefill_scratch``.
    """
    chunk = min(prefill_chunk_tokens, context_tokens)
    whole = cost.reserved_bytes(context_tokens) + cost.prefill_bytes(context_tokens, chunk)
    return slots * (whole + cost.slack_bytes)
