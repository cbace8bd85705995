"""The bytes that each stage has for caches, and what requests cost of them. Pure."""

from collections.abc import Callable, Sequence

from macmesh_placement.cachecost import CachePiece
from macmesh_placement.stagecache import StageCacheCost

Bytes = tuple[int, ...]
"""One figure for each stage."""


def add(*parts: Bytes) -> Bytes:
    """The sums, stage by stage."""
    return tuple(map(sum, zip(*parts, strict=True)))


def times(count: int, part: Bytes) -> Bytes:
    """The multiples, stage by stage."""
    return tuple(count * stage for stage in part)


def most(*parts: Bytes) -> Bytes:
    """The maxima, stage by stage."""
    return tuple(map(max, zip(*parts, strict=True)))


class CacheBudget:
    """What the stages' ledgers hold for caches.

    Args:
        costs: what a request costs on each stage.
        budget_bytes: what each stage has.
    """

    def __init__(self, costs: Sequence[StageCacheCost], budget_bytes: Sequence[int]) -> None:
        if not costs or len(costs) != len(budget_bytes):
            raise ValueError(f"{len(costs)} stages have costs and {len(budget_bytes)} have a budget")
        self._costs = tuple(costs)
        self.budget_bytes: Bytes = tuple(budget_bytes)
        self.nothing: Bytes = (0,) * len(self._costs)
        self.slack: Bytes = tuple(cost.slack_bytes for cost in costs)
        """What the allocator may lose with one request's arrays."""

    @classmethod
    def of_tokens(cls, *, slots: int, context_tokens: int, caches: int = 32) -> "CacheBudget":
        """For plans that do not say what caches cost: ``slots`` whole contexts, counted in tokens.

        Args:
            slots: Whole contexts.
            context_tokens: Tokens of one.
            caches: Caches of equal size that a request has; one at a time is converted.
        """
        piece = CachePiece(kind="growing", source="tokens", bytes_per_token=1)
        cost = StageCacheCost(((piece, caches),), slack_bytes_per_array=0)
        return cls([cost], [slots * cost.reserved_bytes(context_tokens)])

    def reserved(self, tokens: int) -> Bytes:
        """Caches allocated for so many tokens."""
        return self._each(lambda cost: cost.reserved_bytes(tokens))

    def prefill(self, tokens: int, chunk_tokens: int) -> Bytes:
        """What windows hold beyond that while the prompt is taken."""
        return self._each(lambda cost: cost.prefill_bytes(tokens, chunk_tokens))

    def largest_piece(self, tokens: int) -> Bytes:
        """The largest single cache of those of a request; what one is converted at a time needs besides."""
        return self._each(lambda cost: cost.largest_piece_bytes(tokens))

    def fits(self, held: Bytes) -> bool:
        """Whether every stage has room for that."""
        return all(have <= budget for have, budget in zip(held, self.budget_bytes, strict=True))

    def alone(self, tokens: int, chunk_tokens: int) -> Bytes:
        """What a request costs that runs by itself."""
        return add(self.reserved(tokens), self.prefill(tokens, chunk_tokens), self.slack)

    def most_tokens(self, context_tokens: int, chunk_tokens: int) -> int:
        """The longest request of at most ``context_tokens`` that fits when it is alone; 0 where none does."""
        low, high = 0, context_tokens
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(self.alone(middle, chunk_tokens)):
                low = middle
            else:
                high = middle - 1
        return low

    def _each(self, figure: Callable[[StageCacheCost], int]) -> Bytes:
        return tuple(figure(cost) for cost in self._costs)


def budget_of_stages(stages: Sequence[tuple[str, int]], *, slots: int, context_tokens: int) -> CacheBudget:
    """The budget as a deployment's stages say it.

    Args:
        stages: Of each stage ``cache_cost_json`` and ``cache_budget_bytes``. Where one says nothing, tokens are
            counted on all.
        slots: Whole contexts that the plan holds caches for.
        context_tokens: Tokens of one.

    Raises:
        LocalProfileError: A stage's costs cannot be read.
    """
    if not all(text for text, _ in stages):
        return CacheBudget.of_tokens(slots=slots, context_tokens=context_tokens)
    return CacheBudget(
        [StageCacheCost.from_json_text(text) for text, _ in stages], [size_bytes for _, size_bytes in stages]
    )
