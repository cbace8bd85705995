"""What the attention of one layer attends to and materialises."""

from dataclasses import dataclass
from typing import Any

from macmesh_placement.checks import Reader, require_integer
from macmesh_placement.errors import LocalProfileError


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFacts:
    """What the attention of a layer materialises.

    Attributes:
        query_heads: Query heads.
        fused: Metal has a fused kernel for these head sizes, so that prefill keeps no score matrix there.
        score_bytes: Bytes of one score.
        traced: The layer's `scratch` holds its scores already, as it runs without a fused kernel everywhere.
        window_tokens: Most keys that the cache keeps for it between steps; None where all are.
    """

    query_heads: int
    fused: bool
    score_bytes: int
    traced: bool = False
    window_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("query_heads", "score_bytes"):
            require_integer(getattr(self, name), f"attention {name}", LocalProfileError)
        if self.window_tokens is not None:
            require_integer(self.window_tokens, "attention window_tokens", LocalProfileError, minimum=1)

    def scratch_bytes(self, context_tokens: int, chunk_tokens: int, *, fused_kernel: bool) -> int:
        """Bytes of scores that one prefill step of ``chunk_tokens`` materialises beside the layer's `scratch`.

        Unfused attention holds the scores and their softmax at once: twice L times S per head.
        """
        if self.traced or (self.fused and fused_kernel):
            return 0
        chunk = min(chunk_tokens, context_tokens)
        return 2 * self.query_heads * self.score_bytes * chunk * self.keys(context_tokens, chunk)

    def keys(self, context_tokens: int, chunk_tokens: int) -> int:
        """Most keys that a prefill step of ``chunk_tokens`` attends to."""
        if self.window_tokens is None:
            return context_tokens
        return min(context_tokens, self.window_tokens - 1 + chunk_tokens)

    def to_json(self) -> dict[str, Any]:
        """The facts as a JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: object, where: str) -> "AttentionFacts":
        """Reads `to_json`'s form; raises `LocalProfileError` where it is not one."""
        reader = Reader(value, where, LocalProfileError)
        reader.only(cls.__dataclass_fields__)
        return cls(
            query_heads=reader.integer("query_heads"),
            fused=reader.flag("fused"),
            score_bytes=reader.integer("score_bytes"),
            traced=reader.flag("traced", default=False),
            window_tokens=reader.optional_integer("window_tokens", minimum=1),
        )
