"""Traces what one of several equal nodes holds when a model's own ``shard()`` splits every layer over them.

The model is copied without its arrays, sharded for a group that has a size and a rank and cannot communicate,
and profiled like any other. Nothing is evaluated. Some ``shard()`` round down where heads do not divide: so
the parts of all nodes must make the whole, and attention must keep its head sizes, or the number of nodes is
left out. The first and the last node must hold the same; those between them are cut as they are.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers import distributed
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from macmesh_daemon.engine.cache_members import members
from macmesh_daemon.engine.profile_trace import Trace, trace_step
from macmesh_daemon.engine.stand_ins import replaced, uncompiled
from macmesh_placement import ModelProfile, TensorShard

#: Numbers of nodes that are tried.
WAYS = (2, 4, 8)

_PROBE_TOKENS = 3


@dataclass(frozen=True, slots=True)
class PretendedGroup:
    """What ``shard()`` asks of a group."""

    ways: int
    index: int = 0

    def size(self) -> int:
        """Nodes in the group."""
        return self.ways

    def rank(self) -> int:
        """This node's number."""
        return self.index


@dataclass(slots=True)
class Reductions:
    """Collective operations that were asked for."""

    count: int = 0
    size_bytes: int = 0


def tensor_shards(
    model: Module, profiled: Callable[[Module], ModelProfile], ways: tuple[int, ...] = WAYS
) -> tuple[TensorShard, ...]:
    """What each node holds, for each number of nodes over which the model can be split.

    Args:
        model: The whole model, lazily built; left as it is.
        profiled: Profiles a model.
        ways: Numbers of nodes to try.
    """
    if not hasattr(model, "shard"):
        return ()
    whole = _Shapes.of(model)
    found = (_shard(model, whole, profiled, count) for count in ways)
    return tuple(shard for shard in found if shard is not None)


def sharded(model: Module, group: PretendedGroup) -> Module:
    """A copy of a model with its own ``shard()`` applied; the arrays of both are lazy.

    Raises what ``shard()`` raises where it cannot split the model so.
    """
    arrays: Any = tree_flatten(model)
    shared = {id(array): array for _, array in arrays if isinstance(array, mx.array)}
    split: Any = copy.deepcopy(model, dict(shared))
    with _unevaluated():
        split.shard(group)
    return split  # type: ignore[no-any-return]


@contextmanager
def pretended_communication() -> Iterator[Reductions]:
    """Replaces collective operations by ones that keep shapes and count, for as long as the context lasts."""
    seen = Reductions()

    def counted(result: Callable[[mx.array, Any], mx.array]) -> Callable[..., mx.array]:
        def call(x: mx.array, *, group: Any = None, stream: Any = None) -> mx.array:  # noqa: ARG001  mlx's own
            seen.count += 1
            seen.size_bytes += x.nbytes
            return result(x, group)

        return call

    pretended: dict[str, Callable[..., mx.array]] = {
        "all_sum": counted(lambda x, _: x),
        "all_max": counted(lambda x, _: x),
        "all_min": counted(lambda x, _: x),
        "all_gather": counted(lambda x, group: mx.concatenate([x] * group.size())),
    }
    with ExitStack() as stack:
        for name, function in pretended.items():
            stack.enter_context(replaced(mx.distributed, name, function))
        # A custom function of which only the gradient communicates; the graph of a step cannot name it.
        original = distributed.sum_gradients
        for module in list(sys.modules.values()):
            if getattr(module, "sum_gradients", None) is original:
                stack.enter_context(replaced(module, "sum_gradients", lambda _group: lambda x: x))
        yield seen


@dataclass(frozen=True, slots=True)
class _Shapes:
    """What the parts of a model are compared by.

    Attributes:
        sizes: Elements of each parameter, by path.
        attention: Query and value head size of each call of attention, layer by layer.
        heads: Query heads of the same calls.
        key_dims: Size of a head in each cache of keys.
    """

    sizes: dict[str, int]
    attention: list[tuple[int, int]]
    heads: list[int]
    key_dims: list[int]

    @classmethod
    def of(cls, model: Module) -> "_Shapes":
        caches = make_prompt_cache(model)
        trace: Trace = trace_step(model, caches, _PROBE_TOKENS)
        calls = [call for layer in trace.layers for call in layer.attention]
        flat = [member for cache in caches for member in members(cache)]
        keys = [getattr(cache, "keys", None) for cache in flat]
        return cls(
            sizes=_sizes(model),
            attention=[(call.query_dim, call.value_dim) for call in calls],
            heads=[call.query_heads for call in calls],
            key_dims=[key.shape[-1] for key in keys if key is not None],
        )

    def is_part_of(self, whole: "_Shapes", ways: int) -> bool:
        """Whether ``ways`` of these make the whole: nothing is lost, nothing is cut within a head."""
        if self.sizes.keys() != whole.sizes.keys():
            return False
        # Either all of a parameter on each node, or an equal part; keys and values of few heads are repeated.
        parts = all(
            size == whole.sizes[path] or (size > 0 and (size * ways) % whole.sizes[path] == 0)
            for path, size in self.sizes.items()
        )
        heads = [count * ways for count in self.heads]
        same_heads = self.attention == whole.attention and self.key_dims == whole.key_dims
        return parts and same_heads and heads == whole.heads


def _sizes(model: Any) -> dict[str, int]:
    parameters: Any = tree_flatten(model.parameters())
    return {path: array.size for path, array in parameters}


def _shard(
    model: Module, whole: _Shapes, profiled: Callable[[Module], ModelProfile], ways: int
) -> TensorShard | None:
    # A shard() that cannot divide fails in many ways: an assertion, a shape, a division by zero.
    try:
        part, last = (sharded(model, PretendedGroup(ways, rank)) for rank in (0, ways - 1))
        # Compiled functions would report once for many calls.
        with pretended_communication() as reductions, uncompiled():
            shapes = _Shapes.of(part)
            seen = Reductions(reductions.count, reductions.size_bytes)
    except Exception:  # noqa: BLE001  see above
        return None
    if _sizes(last) != shapes.sizes or not shapes.is_part_of(whole, ways):
        return None
    with pretended_communication():
        profile = profiled(part)
    return TensorShard(
        ways=ways,
        layers=profile.layers,
        embedding_bytes=profile.embedding_bytes,
        norm_bytes=profile.norm_bytes,
        head_bytes=profile.head_bytes,
        shared_bytes=profile.shared_bytes,
        reductions_per_step=seen.count,
        reduced_bytes_per_token=-(-seen.size_bytes // _PROBE_TOKENS),
    )


@contextmanager
def _unevaluated() -> Iterator[None]:
    """Some ``shard()`` copy large weights piece by piece; here they would read and hold them."""
    with replaced(mx, "eval", lambda *_: None):
        yield
