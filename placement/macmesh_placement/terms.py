"""The times of a placement, added up again from the request alone.

Nothing here uses the search's tables: each term is a sum over layers in plain numbers, as documented in
`macmesh_placement.costs`.
"""

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.errors import LocalPlacementError
from macmesh_placement.layers import LayerProfile
from macmesh_placement.profile import ModelProfile
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import Placement
from macmesh_placement.shards import TensorShard

_UNKNOWN_BANDWIDTH_GB_PER_S = 100.0
_TOKEN_ID_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTerms:
    """What makes up one stage's time for one token.

    Attributes:
        node_id: Its node.
        first_layer: First layer, inclusive.
        end_layer: End of the range, exclusive.
        decode_read_bytes: Bytes that one decoded token reads: active weights, cache, head or row of embedding.
        decode_operations: Floating-point operations of one decoded token.
        prefill_read_bytes: Bytes that one prompt token reads, its share of a step.
        prefill_operations: Floating-point operations of one prompt token.
        bytes_per_second: Memory bandwidth that was assumed.
        operations_per_second: Compute that was assumed; None: unlimited, because no node's is known.
        decode_seconds: Seconds of one decoded token: layer by layer the longer of reading and computing.
        prefill_seconds: Seconds of one prompt token.
        seconds: Seconds of one token of the request's mixture.
        hop_seconds: Seconds of the hop to the next stage; of the last stage, the way back to the first.
    """

    node_id: str
    first_layer: int
    end_layer: int
    decode_read_bytes: float
    decode_operations: float
    prefill_read_bytes: float
    prefill_operations: float
    bytes_per_second: float
    operations_per_second: float | None
    decode_seconds: float
    prefill_seconds: float
    seconds: float
    hop_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Readded:
    """A placement's sums, made anew.

    Attributes:
        stages: The terms of each stage.
        latency_seconds: Seconds of one token: stages and hops; in tensor parallelism the slowest node and the
            reductions.
        slowest_seconds: Seconds of the slowest stage.
        objective_seconds: What the request's objective makes of them.
    """

    stages: tuple[StageTerms, ...]
    latency_seconds: float
    slowest_seconds: float
    objective_seconds: float

    def to_json(self) -> dict[str, Any]:
        """The sums as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Which tokens are timed: the share that is decoded, tokens in the cache, prompt tokens of one step."""

    decode_share: float
    cached: int
    chunk: int


def prefill_hops(placement: Placement, request: PlanRequest) -> list[float]:
    """Seconds of each hop of a pipeline for one prompt token."""
    nodes = {node.node_id: node for node in request.nodes}
    tokens = replace(_tokens(placement, request), decode_share=0.0)
    return _hops(request, [nodes[stage.node_id] for stage in placement.stages], tokens)


def shard_of(placement: Placement, request: PlanRequest) -> TensorShard:
    """What each node of a tensor-parallel placement holds; `LocalPlacementError` where the profile has none."""
    for shard in request.profile.tensor_shards:
        if shard.ways == len(placement.stages):
            return shard
    raise LocalPlacementError(f"the profile has no tensor_shards of {len(placement.stages)} ways")


def terms_of(placement: Placement, request: PlanRequest) -> Readded:
    """The times of a placement under a request's objective, without comparing them with what it says.

    Raises:
        LocalPlacementError: It names nodes or shards that the request lacks.
    """
    tokens = _tokens(placement, request)
    nodes = {node.node_id: node for node in request.nodes}
    if missing := {stage.node_id for stage in placement.stages} - nodes.keys():
        raise LocalPlacementError(f"the request lacks the nodes {', '.join(sorted(missing))}")
    order = [nodes[stage.node_id] for stage in placement.stages]
    if placement.parallelism == "tensor":
        shard = shard_of(placement, request)
        hops = [_reductions(request, shard, order, tokens), *[0.0] * (len(order) - 1)]
    else:
        hops = _hops(request, order, tokens)
    stages = []
    rates = _rates(request)
    for stage, node, hop in zip(placement.stages, order, hops, strict=True):
        if placement.parallelism == "tensor":
            work = _Work(request.profile, shard.layers, _part(request.profile, shard), shard.ways)
        else:
            layers = request.profile.layers[stage.first_layer : stage.end_layer]
            outer = _Outer.of(request.profile, head=stage.first_layer == 0)
            tail = stage.end_layer == request.profile.layer_count
            work = _Work(request.profile, layers, outer if tail else outer.without_tail(), 1)
        stages.append(
            work.terms(stage.node_id, (stage.first_layer, stage.end_layer), rates, node, tokens, hop)
        )
    slowest = max(stage.seconds for stage in stages)
    latency = slowest + hops[0] if placement.parallelism == "tensor" else 0.0
    if placement.parallelism == "tensor":
        slowest = latency
    else:
        latency = math.fsum(stage.seconds for stage in stages) + math.fsum(hops)
    objective = {
        "latency": latency,
        "throughput": slowest,
        "balanced": max(latency, request.slots * slowest),
    }[request.objective]
    return Readded(
        stages=tuple(stages),
        latency_seconds=latency,
        slowest_seconds=slowest,
        objective_seconds=objective,
    )


def _tokens(placement: Placement, request: PlanRequest) -> _Tokens:
    context = placement.context_tokens
    cached = min(request.decode_context_tokens or context, context)
    return _Tokens(1 - request.prefill_share, cached, max(1, min(request.prefill_chunk_tokens, cached)))


Rates = dict[str, tuple[float, float | None]]
"""For each node bytes and floating-point operations per second; None: unlimited."""


def _rates(request: PlanRequest) -> Rates:
    """Unknown figures take the slowest known of the nodes that may take part."""
    nodes = [node for node in request.nodes if node.node_id not in request.excluded_node_ids]
    speeds = [node.bandwidth_gb_per_s for node in nodes if node.bandwidth_gb_per_s]
    computes = [node.flops_tflops for node in nodes if node.flops_tflops]
    speed = min(speeds, default=_UNKNOWN_BANDWIDTH_GB_PER_S)
    compute = min(computes, default=None)
    found: Rates = {}
    for node in request.nodes:
        flops = node.flops_tflops or compute
        found[node.node_id] = (
            (node.bandwidth_gb_per_s or speed) * 1e9,
            None if flops is None else flops * 1e12,
        )
    return found


@dataclass(frozen=True, slots=True)
class _Outer:
    """Bytes of an embedding's row and of norm and head, and the operations of the head."""

    row_bytes: float
    tail_bytes: float
    tail_operations: float

    @classmethod
    def of(cls, profile: ModelProfile, *, head: bool) -> "_Outer":
        row = profile.hidden_size * profile.activation_bytes if head else 0
        return cls(row, profile.tail_bytes, 2.0 * profile.vocab_size * profile.hidden_size)

    def without_tail(self) -> "_Outer":
        return _Outer(self.row_bytes, 0.0, 0.0)


def _part(profile: ModelProfile, shard: TensorShard) -> _Outer:
    """The outer work of one of the nodes that share every layer."""
    tail = shard.norm_bytes + (shard.embedding_bytes if profile.tied else shard.head_bytes)
    row = profile.hidden_size * profile.activation_bytes
    return _Outer(row, tail, 2.0 * profile.vocab_size * profile.hidden_size)


@dataclass(frozen=True, slots=True)
class _Work:
    """The layers of a stage and what it does besides."""

    profile: ModelProfile
    layers: tuple[LayerProfile, ...]
    outer: _Outer
    ways: int

    def terms(
        self,
        node_id: str,
        span: tuple[int, int],
        rates: Rates,
        node: NodeCapacity,
        tokens: _Tokens,
        hop: float,
    ) -> StageTerms:
        """The stage's time, term by term."""
        speed, compute = rates[node.node_id]

        def longer(read: float, operations: float) -> float:
            return max(read / speed, operations / compute if compute else 0.0)

        decode = [self._decode(layer, tokens) for layer in self.layers]
        prefill = [self._prefill(layer, tokens) for layer in self.layers]
        outer = self.outer
        embedding = outer.row_bytes / speed
        head = longer(outer.tail_bytes, outer.tail_operations)
        decode_seconds = math.fsum(longer(*work) for work in decode) + embedding + head
        prefill_seconds = math.fsum(longer(*work) for work in prefill) + embedding
        share = tokens.decode_share
        return StageTerms(
            node_id=node_id,
            first_layer=span[0],
            end_layer=span[1],
            decode_read_bytes=math.fsum(read for read, _ in decode) + outer.row_bytes + outer.tail_bytes,
            decode_operations=math.fsum(count for _, count in decode) + outer.tail_operations,
            prefill_read_bytes=math.fsum(read for read, _ in prefill) + outer.row_bytes,
            prefill_operations=math.fsum(count for _, count in prefill),
            bytes_per_second=speed,
            operations_per_second=compute,
            decode_seconds=decode_seconds,
            prefill_seconds=prefill_seconds,
            seconds=share * decode_seconds + (1 - share) * prefill_seconds,
            hop_seconds=hop,
        )

    @staticmethod
    def _decode(layer: LayerProfile, tokens: _Tokens) -> tuple[float, float]:
        cache = sum(piece.read_bytes(tokens.cached) for piece in layer.caches)
        return float(layer.active_weight_bytes + cache), 2.0 * layer.active_parameters

    def _prefill(self, layer: LayerProfile, tokens: _Tokens) -> tuple[float, float]:
        """A step touches a layer's weights but for those that no token of it chose, and the cache once."""
        chosen = layer.active_weight_bytes / layer.weight_bytes if layer.weight_bytes else 1.0
        weights = layer.weight_bytes * (1 - (1 - chosen) ** tokens.chunk)
        cache = sum(piece.read_bytes(tokens.cached) for piece in layer.caches)
        operations = 2.0 * layer.active_parameters
        if layer.attention is not None:
            window = layer.attention.window_tokens
            keys = tokens.cached if window is None else min(tokens.cached, window - 1 + tokens.chunk)
            operations += 4.0 * -(-self.profile.hidden_size // self.ways) * keys
        return (weights + cache) / tokens.chunk, operations


def _link(request: PlanRequest, left: str, right: str) -> tuple[float, float]:
    """Latency in seconds and bytes per second between two nodes."""
    for link in request.links:
        if set(link.node_ids) == {left, right}:
            return link.latency_seconds, link.gb_per_s * 1e9
    return request.hop_latency_seconds, request.link_gb_per_s * 1e9


def _latency_share(tokens: _Tokens) -> float:
    """Of a hop's latency, the share of one token: a step's prompt tokens share one."""
    return tokens.decode_share + (1 - tokens.decode_share) / tokens.chunk


def _hops(request: PlanRequest, order: list[NodeCapacity], tokens: _Tokens) -> list[float]:
    if len(order) == 1:
        return [0.0]
    row = request.profile.handover_row_bytes
    hops = []
    for left, right in pairwise(order):
        latency, speed = _link(request, left.node_id, right.node_id)
        hops.append(_latency_share(tokens) * latency + row / speed)
    latency, speed = _link(request, order[-1].node_id, order[0].node_id)
    return [*hops, tokens.decode_share * (latency + _TOKEN_ID_BYTES / speed)]


def _reductions(
    request: PlanRequest, shard: TensorShard, order: list[NodeCapacity], tokens: _Tokens
) -> float:
    """Ring reductions of k nodes: 2 (k - 1) steps with 1/k of the bytes each, over the slowest link."""
    pairs = [(a.node_id, b.node_id) for a in order for b in order if a.node_id < b.node_id]
    latency = max(_link(request, *pair)[0] for pair in pairs)
    speed = min(_link(request, *pair)[1] for pair in pairs)
    steps = 2 * (shard.ways - 1)
    once = shard.reductions_per_step * _latency_share(tokens) * latency
    return steps * (once + shard.reduced_bytes_per_token / shard.ways / speed)
