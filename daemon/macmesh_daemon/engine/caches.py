"""The caches of one request on one stage."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol, cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, QuantizedKVCache, make_prompt_cache

from macmesh_daemon.engine.anatomy import Anatomy
from macmesh_daemon.engine.cache_fit import joined, refit, round_up_tokens, trim_below
from macmesh_daemon.engine.cache_ghosts import advance_ghost
from macmesh_daemon.engine.cache_members import arrays_described, arrays_held, is_compressed, members
from macmesh_daemon.engine.errors import LocalStageError

__all__ = [
    "Caches",
    "StageCaches",
    "advance_ghost",
    "allocate_at_once",
    "arrays_of",
    "make_caches",
    "round_up_tokens",
]

# mlx-lm is not typed.
_ARRAYS_CACHE: Any = ArraysCache
_CACHE_LIST: Any = CacheList

KV_GROUP_SIZE = 64
"""Elements of a row of keys or values that share a scale where they are quantised; what the planner charges."""


class Caches(Protocol):
    """What a step needs of caches, be they one request's or those of the rows of a batch."""

    entries: list[Any]
    """mlx-lm's caches, in the order of `make_prompt_cache`."""

    def advance(self, tokens: int) -> None:
        """Begins a step of so many tokens for each row.

        Raises:
            LocalStageError: it would make the caches grow.
        """

    def advance_ghost(self, index: int, tokens: int) -> None:
        """Advances the cache of a foreign layer in the step that has begun."""

    def copy_states(self, indices: Iterable[int]) -> None:
        """Describes copies of the recurrent states that a step of several tokens left as views."""

    def arrays_at(self, indices: Iterable[int]) -> list[mx.array]:
        """Arrays of some of the caches, to be evaluated."""

    def owned_arrays(self) -> list[mx.array]:
        """All arrays that a step of this stage changes, to be evaluated."""

    def counters(self) -> list[mx.array]:
        """Positions kept as arrays: evaluated with every decode step, or each is made from all before."""


@dataclasses.dataclass
class StageCaches:
    """One request's caches on one stage; those of foreign layers hold nothing.

    Preallocated: the first step allocates the whole reservation, later steps nothing.
    """

    entries: list[Any]
    """mlx-lm's caches, in the order of `make_prompt_cache`."""
    owned: tuple[int, ...]
    """Indices of those that this stage's layers fill."""
    reserve_tokens: int
    """Tokens that were asked for."""
    length: int = 0
    """Tokens that have gone through so far."""

    @property
    def nbytes(self) -> int:
        """Bytes that the caches hold."""
        return bytes_of(self.entries)

    @property
    def trim_below_tokens(self) -> int | None:
        """Up to which length it can be cut back; 0: never; None: always."""
        return lowest_trim_limit(self.entries)

    def advance(self, tokens: int) -> None:
        """Begins a step of so many tokens.

        Raises:
            LocalStageError: it would make the caches grow.
        """
        if self.length + tokens > self.reserve_tokens:
            raise LocalStageError(
                f"{tokens} tokens after {self.length} are more than the {self.reserve_tokens} reserved"
            )
        self.length += tokens

    def advance_ghost(self, index: int, tokens: int) -> None:
        """Advances the cache of a foreign layer in the step that has begun."""
        advance_ghost(self.entries[index], tokens)

    def can_trim_to(self, tokens: int) -> bool:
        """Whether the caches can be cut back to their first so many tokens."""
        return can_cut(self.length, tokens, self.trim_below_tokens)

    def trim_to(self, tokens: int) -> None:
        """Cuts off what was computed beyond so many tokens, on owned and foreign layers alike.

        Raises:
            LocalStageError: a cache has dropped or summed up what would have to come back.
        """
        if not self.can_trim_to(tokens):
            raise LocalStageError(
                f"caches of {self.length} tokens cannot be cut back to {tokens}: the model's caches allow that "
                f"up to a length of {self.trim_below_tokens}"
            )
        surplus = self.length - tokens
        if surplus:
            for entry in self.entries:
                for member in members(entry):
                    member.trim(surplus)
        self.length = tokens

    def resized(self, reserve_tokens: int) -> "StageCaches":
        """The same content with another reservation; these caches are not to be used any more.

        Cache by cache, each evaluated and the old one freed before the next: what both need at a time is one cache.

        Raises:
            LocalStageError: it holds more tokens than that.
        """
        if reserve_tokens < self.length:
            raise LocalStageError(f"{self.length} tokens do not fit a reservation of {reserve_tokens}")
        for entry in self.entries:
            for member in members(entry):
                refit(member, reserve_tokens)
        entries, self.entries = self.entries, []
        return StageCaches(entries, self.owned, reserve_tokens, self.length)

    def copy_states(self, indices: Iterable[int]) -> None:
        """Describes copies of the recurrent states, which a prefill step leaves as slices of what it computed.

        Without them a state of a few rows keeps the buffer of the whole step alive. The copies are part of
        the step's graph: they cost no wait, and each buffer dies as soon as its copy is there.

        Args:
            indices: of the caches, in the order of `make_prompt_cache`.
        """
        copy_states(self.entries[index] for index in indices)

    def arrays_at(self, indices: Iterable[int]) -> list[mx.array]:
        """Arrays of some of the caches."""
        return [
            array
            for index in indices
            for member in members(self.entries[index])
            for array in arrays_described(member)
        ]

    def owned_arrays(self) -> list[mx.array]:
        """Arrays of the caches that this stage fills, so that they can be evaluated."""
        return self.arrays_at(self.owned)

    def counters(self) -> list[mx.array]:
        """See `Caches.counters`; a request alone counts on the host."""
        return []


def lowest_trim_limit(entries: Iterable[Any]) -> int | None:
    """Up to which length all of the caches can be cut back; 0: never; None: always."""
    limits = [trim_below(member) for entry in entries for member in members(entry)]
    return min((limit for limit in limits if limit is not None), default=None)


def can_cut(length: int, tokens: int, limit: int | None) -> bool:
    """Whether caches of a length can be cut to so many tokens, where that is possible up to a limit."""
    return tokens == length or (0 <= tokens < length and (limit is None or length <= limit))


def copy_states(entries: Iterable[Any]) -> None:
    """Describes copies of the recurrent states of some caches."""
    for entry in entries:
        for member in members(entry):
            if type(member) is _ARRAYS_CACHE:
                member.cache = [_copied(array) for array in member.cache]
            elif is_compressed(member):
                member.window = _copied(member.window)
                member.pending_kv = _copied(member.pending_kv)
                member.pending_gate = _copied(member.pending_gate)


def _copied(array: mx.array | None) -> mx.array | None:
    return array if array is None or not array.size or not array.ndim else joined([array], axis=0)


def bytes_of(entries: Iterable[Any]) -> int:
    """Bytes that caches hold."""
    return sum(
        array.nbytes for entry in entries for member in members(entry) for array in arrays_held(member)
    )


def arrays_of(tree: Any) -> list[mx.array]:
    """All arrays in a tree of lists, tuples and dicts."""
    leaves = cast("list[tuple[str, Any]]", tree_flatten(tree))
    return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]


def make_caches(
    model: Module, anatomy: Anatomy, layers: range, reserve_tokens: int, *, kv_bits: int = 0
) -> StageCaches:
    """New caches for one request.

    Args:
        model: the model, whose own `make_cache` is used where it has one.
        anatomy: which layer is called with which cache.
        layers: the layers of this stage.
        reserve_tokens: most tokens that will go through: the prompt and all that is generated.
        kv_bits: bits of an element of keys and values, quantised from the first token on; 0 leaves them as they are.

    Raises:
        LocalStageError: mlx-lm cannot quantise a cache of this model.
    """
    entries = make_prompt_cache(model)
    if kv_bits:
        entries = [_quantised(entry, kv_bits) for entry in entries]
    for entry in entries:
        allocate_at_once(entry, round_up_tokens(reserve_tokens))
    owned = sorted({index for layer in layers for index in anatomy.layer_caches[layer]})
    return StageCaches(entries, tuple(owned), reserve_tokens)


def _quantised(entry: Any, bits: int) -> Any:
    """The cache that takes a new cache's place; recurrent states stay as they are, as in mlx-lm."""
    if type(entry) is _CACHE_LIST:
        return _CACHE_LIST(*(_quantised(inner, bits) for inner in entry.caches))
    if type(entry) is KVCache:
        return QuantizedKVCache(group_size=KV_GROUP_SIZE, bits=bits)
    if type(entry) is _ARRAYS_CACHE:
        return entry
    raise LocalStageError(
        f"mlx-lm cannot quantise a cache of the class {type(entry).__name__}: load without kv_bits"
    )


def allocate_at_once(entry: Any, tokens: int) -> None:
    """Makes a new cache's first growth the only one, where it keeps every token."""
    # A cache grows by its `step`; one as large as the reservation makes the first growth the only one. Caches
    # with a window keep their own step: they grow from what they hold after prefill, so a step as large as
    # the reservation would take them beyond it.
    for inner in getattr(entry, "caches", ()):
        allocate_at_once(inner, tokens)
    if type(entry) in {KVCache, QuantizedKVCache}:
        entry.step = tokens
