"""The cost model: seconds per token of stages, hops and reductions.

A token is a decoded token, or, for the share ``p`` = `PlanRequest.prefill_share`, a prompt token:
``seconds = (1 - p) x decode + p x prefill``. Both are rooflines (Williams, Waterman and Patterson, "Roofline",
CACM 52(4), 2009): work takes the longer of its bytes over the measured memory bandwidth and its
floating-point operations over the measured compute.

========  ====================================  ============================================================
part      bytes                                 floating-point operations
========  ====================================  ============================================================
decode    active weights + the cache that one   2 per active parameter
layer     token reads at the decode context
prefill   (weights touched by a chunk + the     2 per active parameter + 4 x hidden size per key, where the
layer     cache read once by a chunk) / chunk   layer has attention (scores and their product with values)
head      norm and head, decode only: prefill   2 x vocabulary x hidden size
          needs no logits
embedding one row                               none
========  ====================================  ============================================================

The decode context is `PlanRequest.decode_context_tokens`; prompt tokens are counted at the same context, which
is the last and dearest chunk of a prompt. A chunk of C tokens touches the expected share
``1 - (1 - r)^C`` of a layer's weights, r being the share that one token reads (active / all bytes): tokens
choose experts independently. It is exact for C = 1 and for dense layers, where r = 1. The products of
attention are taken to be as wide as the hidden state.

A hop to the next stage takes ``latency + row / bandwidth`` for a decoded token, row being the bytes of one
token that cross (`ModelProfile.handover_row_bytes`); in prefill a chunk shares one latency. The token's way
back from the last stage to the first takes ``latency + 4 bytes / bandwidth``, for decoded tokens only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.layers import LayerProfile
from macmesh_placement.links import Link
from macmesh_placement.profile import ModelProfile
from macmesh_placement.request import PlanRequest
from macmesh_placement.tables import Additive, Floats, additive, boundaries

#: Bandwidth assumed where no node's is known. Only the ratios between nodes matter for the plan.
ASSUMED_BANDWIDTH_GB_PER_S = 100.0
#: Bytes of a token id on its way back to the first stage.
TOKEN_ID_BYTES = 4
_ATTENTION_FLOPS = 4  # a product and a sum each for scores and values, per key and element of the width


@dataclass(frozen=True, slots=True)
class Rates:
    """What the nodes were measured at: bytes per second and floating-point operations per second, [nodes]."""

    bandwidth: Floats
    compute: Floats

    @classmethod
    def of(cls, nodes: Sequence[NodeCapacity], among: Sequence[NodeCapacity]) -> "Rates":
        """The nodes' rates; an unknown one takes the slowest known of its kind ``among`` all nodes.

        Compute that no node knows is taken to be unlimited.
        """
        speeds = [node.bandwidth_gb_per_s for node in among if node.bandwidth_gb_per_s > 0]
        assumed = min(speeds, default=ASSUMED_BANDWIDTH_GB_PER_S)
        known = [node.flops_tflops for node in among if node.flops_tflops]
        slowest = min(known, default=np.inf)
        return cls(
            bandwidth=np.array([(node.bandwidth_gb_per_s or assumed) * 1e9 for node in nodes]),
            compute=np.array([(node.flops_tflops or slowest) * 1e12 for node in nodes]),
        )


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which tokens are timed.

    Attributes:
        decode_share: Share of decoded tokens; the rest are prompt tokens.
        context_tokens: Tokens in the cache.
        chunk_tokens: Prompt tokens of one step.
    """

    decode_share: float
    context_tokens: int
    chunk_tokens: int

    @classmethod
    def of(cls, request: PlanRequest, context_tokens: int) -> "Mixture":
        """The request's mixture at that context, or at its decode context where that is less."""
        tokens = min(request.decode_context_tokens or context_tokens, context_tokens)
        chunk = max(1, min(request.prefill_chunk_tokens, tokens))
        return cls(1 - request.prefill_share, tokens, chunk)

    def with_share(self, decode_share: float) -> "Mixture":
        """The same context with another share of decoded tokens."""
        return Mixture(decode_share, self.context_tokens, self.chunk_tokens)


def decode_work(layer: LayerProfile, mixture: Mixture) -> tuple[float, float]:
    """Bytes and floating-point operations of one decoded token in a layer."""
    read = layer.active_weight_bytes + sum(p.read_bytes(mixture.context_tokens) for p in layer.caches)
    return float(read), 2.0 * layer.active_parameters


def prefill_work(layer: LayerProfile, mixture: Mixture, width: int) -> tuple[float, float]:
    """Bytes and floating-point operations of one prompt token in a layer.

    Args:
        layer: The layer.
        mixture: Context and chunk.
        width: Elements of all heads of the attention together.
    """
    chunk, keys = mixture.chunk_tokens, mixture.context_tokens
    share = layer.active_weight_bytes / layer.weight_bytes if layer.weight_bytes else 1.0
    touched = layer.weight_bytes * (1 - (1 - share) ** chunk)
    read = touched + sum(piece.read_bytes(keys) for piece in layer.caches)
    flops = 2.0 * layer.active_parameters
    if layer.attention is not None:
        window = layer.attention.window_tokens
        seen = keys if window is None else min(keys, window - 1 + chunk)
        flops += float(_ATTENTION_FLOPS * width * seen)
    return read / chunk, flops


def layer_seconds(layers: Sequence[LayerProfile], rates: Rates, mixture: Mixture, width: int) -> Floats:
    """Seconds of one token in each layer on each node, [nodes, layers]."""
    known: dict[int, tuple[float, float, float, float]] = {}
    for layer in layers:
        if id(layer) not in known:
            known[id(layer)] = (*decode_work(layer, mixture), *prefill_work(layer, mixture, width))
    work = np.array([known[id(layer)] for layer in layers])
    decode = np.maximum(work[:, 0] / rates.bandwidth[:, None], work[:, 1] / rates.compute[:, None])
    if mixture.decode_share == 1:
        return decode
    prefill = np.maximum(work[:, 2] / rates.bandwidth[:, None], work[:, 3] / rates.compute[:, None])
    mixed: Floats = mixture.decode_share * decode + (1 - mixture.decode_share) * prefill
    return mixed


def outer_seconds(profile: ModelProfile, rates: Rates, mixture: Mixture) -> tuple[Floats, Floats]:
    """Seconds of one token in the embedding and in norm and head, [nodes] each."""
    embedding = profile.hidden_size * profile.activation_bytes / rates.bandwidth
    head = np.maximum(
        profile.tail_bytes / rates.bandwidth, 2.0 * profile.vocab_size * profile.hidden_size / rates.compute
    )
    return embedding, mixture.decode_share * head


def stage_seconds(profile: ModelProfile, rates: Rates, mixture: Mixture) -> Additive:
    """Seconds of one token in each stage, hops aside."""
    per_layer = layer_seconds(profile.layers, rates, mixture, profile.hidden_size)
    return additive(per_layer, *outer_seconds(profile, rates, mixture), boundaries(profile))


def hop_seconds(profile: ModelProfile, link: Link, mixture: Mixture) -> float:
    """Seconds in which what is handed on of one token crosses the link, its share of the latency included."""
    row = profile.handover_row_bytes
    share = mixture.decode_share + (1 - mixture.decode_share) / mixture.chunk_tokens
    return share * link.latency_seconds + row / (link.gb_per_s * 1e9)


def back_seconds(link: Link, mixture: Mixture) -> float:
    """Seconds of a token id's way back to the first stage over the link."""
    return mixture.decode_share * (link.latency_seconds + TOKEN_ID_BYTES / (link.gb_per_s * 1e9))


def reduction_seconds(ways: int, link: Link, count: int, token_bytes: int, mixture: Mixture) -> float:
    """Seconds of one token in the reductions of tensor parallelism.

    A ring reduction over k nodes takes 2 (k - 1) steps in which each node sends 1/k of its data (Patarasuk and
    Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 69(2), 2009).

    Args:
        ways: Nodes.
        link: What joins any two of them.
        count: Reductions in one step.
        token_bytes: Bytes that one node puts into all of them, per token.
        mixture: Which tokens are timed.
    """
    steps = 2 * (ways - 1)
    share = mixture.decode_share + (1 - mixture.decode_share) / mixture.chunk_tokens
    return steps * (share * count * link.latency_seconds + token_bytes / ways / (link.gb_per_s * 1e9))
