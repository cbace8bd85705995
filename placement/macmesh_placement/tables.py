"""The tables that the search works on: bytes that every possible stage needs, and where one may begin.

Stages begin and end at *boundaries*: 0, the model's cut points, and the layer count. ``a`` and ``b`` below
count boundaries. Seconds are in `macmesh_placement.costs`, bytes to load in
`macmesh_placement.loads`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.layers import LayerProfile
from macmesh_placement.ledger import (
    HIDDEN_STATES,
    PAGE_BYTES,
    PIPED_HIDDEN_STATES,
    SAMPLING_COPIES,
    StageDemand,
)
from macmesh_placement.profile import ModelProfile

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


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
            cache = sum(
                p.reserved_bytes(context) + p.lasting_prefill_bytes(context, chunk) for p in layer.caches
            )
            arrays = layer.parameter_count + slots * sum(piece.array_count for piece in layer.caches)
            attention = layer.attention
            scores = attention.scratch_bytes(context, chunk, fused_kernel=fused_attention) if attention else 0
            known[id(layer)] = (
                layer.weight_bytes + slots * cache + arrays * PAGE_BYTES,
                layer.prefill_scratch_bytes(context, chunk),
                scores,
            )
        return known[id(layer)]

    columns = np.array([measure(layer) for layer in profile.layers], dtype=np.int64)
    at = boundaries(profile)
    held = _prefix(columns[:, 0])[at]
    hidden = chunk * profile.handover_row_bytes
    totals = held[None, :] - held[:, None]
    totals += _range_max(columns[:, 1], at) + PIPED_HIDDEN_STATES * hidden + _range_max(columns[:, 2], at)
    totals += profile.shared_bytes + reserves.transport_pool_bytes + reserves.runtime_reserve_bytes
    totals += reserves.buffer_cache_bytes + profile.outer_parameter_count * PAGE_BYTES
    head_pieces = profile.head_caches
    totals[0, :] += profile.embedding_bytes
    totals[0, :] += slots * sum(
        p.reserved_bytes(context) + p.lasting_prefill_bytes(context, chunk) for p in head_pieces
    )
    totals[0, :] += slots * PAGE_BYTES * sum(piece.array_count for piece in head_pieces)
    totals[:, -1] += profile.tail_bytes + demand.sampled_rows * profile.vocab_size * 4 * SAMPLING_COPIES
    return totals


def totals_by_attention(
    profile: ModelProfile, demand: StageDemand, nodes: tuple[NodeCapacity, ...]
) -> dict[bool, Integers]:
    """`stage_totals` on nodes that have fused attention kernels and on those that have not, as far as needed."""
    return {
        fused: stage_totals(profile, demand, fused_attention=fused)
        for fused in {node.fused_attention for node in nodes}
    }


def whole_model_bytes(profile: ModelProfile, demand: StageDemand, totals: Integers) -> int:
    """Bytes of a single stage that holds everything: no transport, and a tied head shares the embedding."""
    hidden = min(demand.prefill_chunk_tokens, demand.context_tokens) * profile.handover_row_bytes
    piped = demand.reserves.transport_pool_bytes + (PIPED_HIDDEN_STATES - HIDDEN_STATES) * hidden
    return int(totals[0, -1]) - piped - profile.tied_copy_bytes


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


def lowest_begins(totals: Integers, usable: Integers) -> Integers:
    """For each node and end b the lowest begin a < b of a stage within the node's bytes; b where none is.

    Args:
        totals: [boundaries, boundaries]; bytes of every stage, never growing with a.
        usable: [nodes].
    """
    count = len(totals)
    low = np.zeros((len(usable), count), dtype=np.int64)
    for b in range(1, count):
        low[:, b] = np.searchsorted(-totals[:b, b], -usable, side="left")
    return low


def lowest_begins_within(cost: Additive, cap: float) -> Integers:
    """For each node and end b the lowest begin a of a stage that costs at most ``cap``; b at most.

    A relative 1e-12 of slack absorbs the rounding of the sums. Costs must not grow with a.
    """
    nodes, count = cost.begin.shape
    ends = np.arange(count)
    low = np.empty((nodes, count), dtype=np.int64)
    falling = -cost.begin
    wanted = cost.end - cap * (1 + 1e-12)
    for node in range(nodes):
        low[node] = np.searchsorted(falling[node], wanted[node], side="left")
    return np.minimum(low, ends)
