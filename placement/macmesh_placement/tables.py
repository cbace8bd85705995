"""The numbers that the search works on: bytes, seconds and bytes to load of every possible stage.

Stages begin and end at *boundaries*: 0, the model's cut points, and the layer count. ``a`` and ``b`` below
count boundaries.

The cost model is a roofline over one decoded token at full context. A layer's time on a node is the larger of

* bytes read / measured bandwidth, where the bytes are the active weights and the cache of one request at the
  context, and
* 2 x active parameters / measured compute, where the node's compute is known.

The last stage reads the norm and the head too, the first one row of the embedding. A pipeline of S > 1 stages
adds S hops (S - 1 handing on the hidden state, one bringing the token id back), each the hop latency plus its
bytes over the link.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.ledger import LAYERS_IN_FLIGHT, PAGE_BYTES, SAMPLING_COPIES, StageDemand
from macmesh_placement.profile import LayerProfile, ModelProfile
from macmesh_placement.request import PlanRequest

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: Bandwidth assumed where no node's is known. Only the ratios between nodes matter for the plan.
ASSUMED_BANDWIDTH_GB_PER_S = 100.0


def boundaries(profile: ModelProfile) -> Integers:
    """The layer numbers at which a stage may begin or end, ascending."""
    return np.array([0, *profile.cut_points, profile.layer_count], dtype=np.int64)


def stage_totals(profile: ModelProfile, demand: StageDemand, *, fused_attention: bool) -> Integers:
    """Bytes that each stage needs, equal to `stage_ledger`'s totals for plans of more than one stage.

    Returns:
        An array of shape [boundaries, boundaries]; entry [a, b] is the stage from boundary a to b > a.
        Entries with b <= a are meaningless. Totals never grow with a for a fixed b.
    """
    context, slots, reserves = demand.context_tokens, demand.slots, demand.reserves
    chunk = min(demand.prefill_chunk_tokens, context)
    known: dict[int, tuple[int, int, int]] = {}

    def measure(layer: LayerProfile) -> tuple[int, int, int]:
        if id(layer) not in known:
            cache = sum(p.reserved_bytes(context) + p.prefill_bytes(context, chunk) for p in layer.caches)
            arrays = layer.parameter_count + slots * sum(piece.array_count for piece in layer.caches)
            attention = layer.attention
            scores = attention.scratch_bytes(context, chunk, fused_kernel=fused_attention) if attention else 0
            known[id(layer)] = (
                layer.weight_bytes + slots * cache + arrays * PAGE_BYTES,
                layer.activation_bytes_per_token,
                scores,
            )
        return known[id(layer)]

    columns = np.array([measure(layer) for layer in profile.layers], dtype=np.int64)
    at = boundaries(profile)
    held = _prefix(columns[:, 0])[at]
    hidden = chunk * profile.hidden_size * profile.activation_bytes
    totals = held[None, :] - held[:, None]
    totals += LAYERS_IN_FLIGHT * (chunk * _range_max(columns[:, 1], at) + hidden) + _range_max(
        columns[:, 2], at
    )
    totals += profile.shared_bytes + reserves.transport_pool_bytes + reserves.runtime_reserve_bytes
    totals += reserves.buffer_cache_bytes + profile.outer_parameter_count * PAGE_BYTES
    head_pieces = profile.head_caches
    totals[0, :] += profile.embedding_bytes
    totals[0, :] += slots * sum(
        p.reserved_bytes(context) + p.prefill_bytes(context, chunk) for p in head_pieces
    )
    totals[0, :] += slots * PAGE_BYTES * sum(piece.array_count for piece in head_pieces)
    totals[:, -1] += profile.tail_bytes + slots * profile.vocab_size * 4 * SAMPLING_COPIES
    return totals


def whole_model_bytes(profile: ModelProfile, demand: StageDemand, totals: Integers) -> int:
    """Bytes of a single stage that holds everything: no transport, and a tied head shares the embedding."""
    return int(totals[0, -1]) - demand.reserves.transport_pool_bytes - profile.tied_copy_bytes


def _prefix(values: Integers) -> Integers:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(values)])


def _range_max(values: Integers, at: Integers) -> Integers:
    """Entry [a, b] is the largest of the values between the boundaries a and b."""
    segments = np.maximum.reduceat(values, at[:-1])
    count = len(at)
    result = np.zeros((count, count), dtype=np.int64)
    for first in range(count - 1):
        result[first, first + 1 :] = np.maximum.accumulate(segments[first:])
    return result


@dataclass(frozen=True, slots=True)
class Additive:
    """A cost of stages that adds up over layers: entry (node j, a, b) is ``begin[j, a] + end[j, b]``."""

    begin: Floats
    end: Floats

    def of(self, node: int, a: int, b: int) -> float:
        """The cost of one stage."""
        return float(self.begin[node, a] + self.end[node, b])

    def matrix(self, node: int) -> Floats:
        """The costs of all stages of a node."""
        matrix: Floats = self.begin[node][:, None] + self.end[node][None, :]
        return matrix


def additive(per_layer: Floats, at_head: Floats, at_tail: Floats, at: Integers) -> Additive:
    """Builds an additive cost.

    Args:
        per_layer: Cost of each layer on each node, [nodes, layers].
        at_head: What the first stage adds, [nodes].
        at_tail: What the last stage adds, [nodes].
        at: The boundaries.
    """
    prefix = np.concatenate([np.zeros((len(per_layer), 1)), np.cumsum(per_layer, axis=1)], axis=1)[:, at]
    begin, end = -prefix, prefix.copy()
    begin[:, 0] += at_head
    end[:, -1] += at_tail
    return Additive(begin=begin, end=end)


def known_bandwidths(nodes: tuple[NodeCapacity, ...]) -> Floats:
    """Bandwidths in bytes per second; an unknown one takes the slowest known."""
    known = [node.bandwidth_gb_per_s for node in nodes if node.bandwidth_gb_per_s > 0]
    assumed = min(known, default=ASSUMED_BANDWIDTH_GB_PER_S)
    return np.array([(node.bandwidth_gb_per_s or assumed) * 1e9 for node in nodes])


def stage_seconds(request: PlanRequest, nodes: tuple[NodeCapacity, ...], context_tokens: int) -> Additive:
    """Seconds of one decoded token in each stage, hops aside."""
    profile, layers = request.profile, request.profile.layers
    bandwidths = known_bandwidths(nodes)
    compute = np.array([node.flops_tflops * 1e12 if node.flops_tflops else np.inf for node in nodes])
    reads = np.array(
        [
            layer.active_weight_bytes + sum(p.read_bytes(context_tokens) for p in layer.caches)
            for layer in layers
        ],
        dtype=np.float64,
    )
    flops = np.array([2.0 * layer.active_parameters for layer in layers])
    per_layer = np.maximum(reads[None, :] / bandwidths[:, None], flops[None, :] / compute[:, None])
    row = profile.hidden_size * profile.activation_bytes
    return additive(per_layer, row / bandwidths, profile.tail_bytes / bandwidths, boundaries(profile))


def load_bytes(profile: ModelProfile, nodes: tuple[NodeCapacity, ...]) -> Additive:
    """Bytes of parameters that each stage would have to load, in plans of more than one stage."""
    weights = np.array([layer.weight_bytes for layer in profile.layers], dtype=np.float64)
    missing = np.array(
        [[index not in node.resident_layers for index in range(profile.layer_count)] for node in nodes],
        dtype=bool,
    )
    at_head = np.array([0.0 if node.holds_embedding else profile.embedding_bytes for node in nodes])
    at_tail = np.array([0.0 if node.holds_head else profile.tail_bytes for node in nodes])
    return additive(missing * weights[None, :], at_head, at_tail, boundaries(profile))


def hop_seconds(request: PlanRequest, stage_count: int) -> float:
    """Seconds that one decoded token spends between stages."""
    if stage_count == 1:
        return 0.0
    row = request.profile.hidden_size * request.profile.activation_bytes
    handed = (stage_count - 1) * row / (request.link_gb_per_s * 1e9)
    return stage_count * request.hop_latency_seconds + handed


def lowest_begins(fits: npt.NDArray[np.bool_]) -> Integers:
    """For each end b the lowest begin a < b of a stage that fits; b where none does.

    Args:
        fits: [..., boundaries, boundaries]; in each column, what fits goes on fitting as a grows up to b - 1.
    """
    count = fits.shape[-1]
    below = fits & np.triu(np.ones((count, count), dtype=bool), k=1)
    first = below.argmax(axis=-2)
    return np.where(below.any(axis=-2), first, np.arange(count)).astype(np.int64)
