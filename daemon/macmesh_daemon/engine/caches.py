"""The caches of one request on one stage."""

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, KVCache, make_prompt_cache

from macmesh_daemon.engine.anatomy import Anatomy
from macmesh_daemon.engine.cache_members import is_compressed, members
from macmesh_daemon.engine.errors import LocalStageError

# mlx-lm is not typed.
_ARRAYS_CACHE: Any = ArraysCache

ALLOCATION_TOKENS = 256
"""mlx-lm's caches grow in steps of so many tokens."""


def round_up_tokens(tokens: int) -> int:
    """Tokens that a cache of so many is allocated for."""
    return -(-tokens // ALLOCATION_TOKENS) * ALLOCATION_TOKENS


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
        return sum(array.nbytes for array in self.arrays_at(range(len(self.entries))))

    def owned_arrays(self) -> list[mx.array]:
        """Arrays of the caches that this stage fills, so that they can be evaluated."""
        return self.arrays_at(self.owned)

    def advance(self, tokens: int) -> None:
        """Counts a step of so many tokens.

        Raises:
            LocalStageError: it would make the caches grow.
        """
        self.require_room(tokens)
        self.length += tokens

    def require_room(self, tokens: int) -> None:
        """Lets a step pass that fits the reservation.

        Raises:
            LocalStageError: it would make the caches grow.
        """
        if self.length + tokens > self.reserve_tokens:
            raise LocalStageError(
                f"{tokens} tokens after {self.length} are more than the {self.reserve_tokens} reserved"
            )

    def copy_states(self, indices: Iterable[int]) -> None:
        """Describes copies of the recurrent states, which a prefill step leaves as slices of what it computed.

        Without them a state of a few rows keeps the buffer of the whole step alive. The copies are part of
        the step's graph: they cost no wait, and each buffer dies as soon as its copy is there.

        Args:
            indices: of the caches, in the order of `make_prompt_cache`.
        """
        for index in indices:
            for member in members(self.entries[index]):
                if type(member) is _ARRAYS_CACHE:
                    member.cache = [_copied(array) for array in member.cache]
                elif is_compressed(member):
                    member.window = _copied(member.window)
                    member.pending_kv = _copied(member.pending_kv)
                    member.pending_gate = _copied(member.pending_gate)

    def arrays_at(self, indices: Iterable[int]) -> list[mx.array]:
        """Arrays of some of the caches."""
        return arrays_of([self.entries[index].state for index in indices])


def _copied(array: mx.array | None) -> mx.array | None:
    # `mx.contiguous` and `mx.array` may alias; joining with nothing never does, and changes no bit.
    if array is None or not array.size or not array.ndim:
        return array
    return mx.concatenate([array, mx.zeros((0, *array.shape[1:]), array.dtype)], axis=0)


def arrays_of(tree: Any) -> list[mx.array]:
    """All arrays in a tree of lists, tuples and dicts."""
    leaves = cast("list[tuple[str, Any]]", tree_flatten(tree))
    return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]


def make_caches(model: Module, anatomy: Anatomy, layers: range, reserve_tokens: int) -> StageCaches:
    """New caches for one request.

    Args:
        model: the model, whose own `make_cache` is used where it has one.
        anatomy: which layer is called with which cache.
        layers: the layers of this stage.
        reserve_tokens: most tokens that will go through: the prompt and all that is generated.
    """
    entries = make_prompt_cache(model)
    for entry in entries:
        allocate_at_once(entry, round_up_tokens(reserve_tokens))
    owned = sorted({index for layer in layers for index in anatomy.layer_caches[layer]})
    return StageCaches(entries, tuple(owned), reserve_tokens)


def allocate_at_once(entry: Any, tokens: int) -> None:
    """Makes a new cache's first growth the only one, where it keeps every token."""
    # A cache grows by its `step`; one as large as the reservation makes the first growth the only one. Caches
    # with a window keep their own step: they grow from what they hold after prefill, so a step as large as
    # the reservation would take them beyond it.
    for inner in getattr(entry, "caches", ()):
        allocate_at_once(inner, tokens)
    if type(entry) is KVCache:
        entry.step = tokens
