"""A planner that tries everything. It shares nothing with the real one but the data it reads.

Every order of nodes and every way to cut is laid out as arrays and added up; nothing is left out, nothing is
bounded.
"""

from functools import cache
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np

from macmesh_placement import LayerProfile, Link, ModelProfile, NodeCapacity, PlanRequest

Array = np.ndarray[Any, np.dtype[Any]]


class Plan(NamedTuple):
    objective: float
    load_bytes: int
    all_rdma: bool
    stages: tuple[tuple[str, int, int], ...]


class Plans(NamedTuple):
    """Every plan that fits, one row each."""

    objective: Array
    load_bytes: Array
    all_rdma: Array
    place: dict[tuple[tuple[str, int, int], ...], int]

    def of(self, stages: tuple[tuple[str, int, int], ...]) -> Plan | None:
        row = self.place.get(stages)
        if row is None:
            return None
        return Plan(float(self.objective[row]), int(self.load_bytes[row]), bool(self.all_rdma[row]), stages)


def head_copy(profile: ModelProfile) -> int:
    """Of the embedding, what a tied head needs."""
    return profile.embedding_bytes if profile.head_copy_bytes is None else profile.head_copy_bytes


def scratch_bytes(layer: LayerProfile, context: int, chunk: int) -> int:
    keys = context
    if layer.attention is not None and layer.attention.window_tokens is not None:
        keys = min(keys, layer.attention.window_tokens - 1 + chunk)
    passing = sum(piece.passing_prefill_bytes(context, chunk) for piece in layer.caches)
    return passing + sum(
        max(
            (a + b * chunk + c * keys + d * chunk * keys + e * chunk**2 for a, b, c, d, e in terms), default=0
        )
        for terms in (layer.scratch.live, layer.scratch.largest)
    )


def needed_bytes(request: PlanRequest, node: NodeCapacity, first: int, end: int) -> int:
    """The ledger's total, added up afresh from the documented terms."""
    profile, context, slots = request.profile, request.resolved_context_tokens, request.slots
    chunk = min(request.prefill_chunk_tokens, context)
    reserves = request.reserves
    head, tail = first == 0, end == profile.layer_count
    need = reserves.runtime_reserve_bytes + reserves.buffer_cache_bytes + profile.shared_bytes
    arrays = profile.outer_parameter_count
    widest = scores = 0
    for layer in profile.layers[first:end]:
        need += layer.weight_bytes
        arrays += layer.parameter_count
        widest = max(widest, scratch_bytes(layer, context, chunk))
        for piece in layer.caches:
            need += slots * (piece.reserved_bytes(context) + piece.lasting_prefill_bytes(context, chunk))
            arrays += slots * piece.array_count
        if layer.attention is not None:
            scores = max(
                scores, layer.attention.scratch_bytes(context, chunk, fused_kernel=node.fused_attention)
            )
    if head:
        need += profile.embedding_bytes
        for piece in profile.head_caches:
            need += slots * (piece.reserved_bytes(context) + piece.lasting_prefill_bytes(context, chunk))
            arrays += slots * piece.array_count
    if tail:
        rows = max(slots, reserves.sampled_rows)
        need += profile.norm_bytes + profile.head_bytes + rows * profile.vocab_size * 4 * 6
        if profile.tied and not head:
            need += head_copy(profile)
    if not (head and tail):
        need += reserves.transport_pool_bytes
    hidden = chunk * handed_on(profile) * (2 if head and tail else 4)
    return need + arrays * 16384 + widest + hidden + scores


def _speed_and_compute(request: PlanRequest, node: NodeCapacity) -> tuple[float, float]:
    """Measured rates; what is not known is taken from the slowest of the nodes that may take part."""
    others = [other for other in request.nodes if other.node_id not in request.excluded_node_ids]
    speeds = [other.bandwidth_gb_per_s for other in others if other.bandwidth_gb_per_s]
    powers = [other.flops_tflops for other in others if other.flops_tflops]
    speed = node.bandwidth_gb_per_s or min(speeds)
    power = node.flops_tflops or min(powers, default=float("inf"))
    return speed * 1e9, power * 1e12


def _layer_seconds(request: PlanRequest, node: NodeCapacity, index: int) -> float:
    profile, p = request.profile, request.prefill_share
    layer = profile.layers[index]
    context = request.decode_context_tokens or request.resolved_context_tokens
    speed, power = _speed_and_compute(request, node)
    cached = sum(piece.read_bytes(context) for piece in layer.caches)
    decode = max((layer.active_weight_bytes + cached) / speed, 2 * layer.active_parameters / power)
    chunk = min(request.prefill_chunk_tokens, context)
    untouched = 1.0
    if layer.weight_bytes:
        untouched = (1 - layer.active_weight_bytes / layer.weight_bytes) ** chunk
    flops = 2 * layer.active_parameters
    if layer.attention is not None:
        keys = context
        if layer.attention.window_tokens is not None:
            keys = min(keys, layer.attention.window_tokens + chunk - 1)
        flops += 4 * profile.hidden_size * keys
    prefill = max((layer.weight_bytes * (1 - untouched) + cached) / chunk / speed, flops / power)
    return (1 - p) * decode + p * prefill


def stage_seconds(request: PlanRequest, node: NodeCapacity, first: int, end: int) -> float:
    profile = request.profile
    speed, power = _speed_and_compute(request, node)
    seconds = sum(_layer_seconds(request, node, index) for index in range(first, end))
    if first == 0:
        seconds += profile.hidden_size * profile.activation_bytes / speed
    if end == profile.layer_count:
        outer = profile.norm_bytes + (head_copy(profile) if profile.tied else profile.head_bytes)
        product = 2 * profile.vocab_size * profile.hidden_size / power
        seconds += (1 - request.prefill_share) * max(outer / speed, product)
    return seconds


def handed_on(profile: ModelProfile) -> int:
    """Bytes of one token that cross between stages; the hidden state is among them."""
    hidden = profile.hidden_size * profile.activation_bytes
    return max(hidden, profile.handover_bytes)


def link_between(request: PlanRequest, left: str, right: str) -> Link | None:
    return next((link for link in request.links if set(link.node_ids) == {left, right}), None)


def hop_seconds(request: PlanRequest, left: str, right: str, *, back: bool) -> float:
    """Handing on one token's hidden state, or sending its id back to the head."""
    link = link_between(request, left, right)
    latency = link.latency_seconds if link else request.hop_latency_seconds
    speed = (link.gb_per_s if link else request.link_gb_per_s) * 1e9
    p = request.prefill_share
    if back:
        return (1 - p) * (latency + 4 / speed)
    row = handed_on(request.profile) / speed
    context = request.decode_context_tokens or request.resolved_context_tokens
    chunk = min(request.prefill_chunk_tokens, context)
    return (1 - p) * (latency + row) + p * (latency / chunk + row)


def load_bytes(profile: ModelProfile, node: NodeCapacity, first: int, end: int) -> int:
    load = sum(profile.layers[i].weight_bytes for i in range(first, end) if i not in node.resident_layers)
    head, tail = first == 0, end == profile.layer_count
    if head and not node.holds_embedding:
        load += profile.embedding_bytes
        if tail and profile.tied and node.holds_head:
            load -= head_copy(profile)
    if tail and not node.holds_head:
        load += profile.norm_bytes + profile.head_bytes
        if profile.tied and not head:
            load += head_copy(profile)
    return load


@cache
def _orders(count: int, size: int) -> Array:
    return np.array(list(permutations(range(count), size)), dtype=np.int64).reshape(-1, size)


def _marks(profile: ModelProfile, size: int) -> Array:
    rows = [(0, *cuts, profile.layer_count) for cuts in combinations(profile.cut_points, size - 1)]
    return np.array(rows, dtype=np.int64).reshape(-1, size + 1)


def plans(request: PlanRequest) -> Plans:
    """Every plan that fits and that the pins allow."""
    nodes = [node for node in request.nodes if node.node_id not in request.excluded_node_ids]
    layers = request.profile.layer_count
    edges = (0, *request.profile.cut_points, layers)
    shape = (len(nodes), layers + 1, layers + 1)
    need, time, load = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for row, node in enumerate(nodes):
        for first, end in combinations(edges, 2):
            need[row, first, end] = needed_bytes(request, node, first, end)
            time[row, first, end] = stage_seconds(request, node, first, end)
            load[row, first, end] = load_bytes(request.profile, node, first, end)
    names = [node.node_id for node in nodes]
    hop = np.array([[hop_seconds(request, a, b, back=False) if a != b else 0 for b in names] for a in names])
    back = np.array([[hop_seconds(request, a, b, back=True) if a != b else 0 for b in names] for a in names])
    linked = [[link_between(request, a, b) for b in names] for a in names]
    rdma = np.array([[link is not None and link.kind == "rdma" for link in row] for row in linked])
    parts = []
    for size in range(1, len(nodes) + 1):
        if request.stage_count in {0, size}:
            part = _of_size(request, nodes, size, (need, time, load), (hop, back, rdma))
            if part is not None:
                parts.append(part)
    if not parts:
        return Plans(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool), {})
    stages = [stages for part in parts for stages in part[3]]
    return Plans(
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
        {tuple((names[j], a, b) for j, a, b in plan): row for row, plan in enumerate(stages)},
    )


def _of_size(
    request: PlanRequest,
    nodes: list[NodeCapacity],
    size: int,
    stage_tables: tuple[Array, Array, Array],
    hop_tables: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array, list[list[tuple[int, int, int]]]] | None:
    need, time, load = stage_tables
    hop, back, rdma = hop_tables
    orders, marks = _orders(len(nodes), size), _marks(request.profile, size)
    place = {node.node_id: index for index, node in enumerate(nodes)}
    for name in request.required_node_ids:
        orders = orders[(orders == place[name]).any(axis=1)]
    if request.head_node_id:
        orders = orders[orders[:, 0] == place[request.head_node_id]]
    if request.tail_node_id:
        orders = orders[orders[:, -1] == place[request.tail_node_id]]
    if not len(orders) or not len(marks):
        return None
    who = np.repeat(orders, len(marks), axis=0)
    where = np.tile(marks, (len(orders), 1))
    begins, ends = where[:, :-1], where[:, 1:]
    needs = need[who, begins, ends]
    usable = np.array([node.usable_bytes for node in nodes])
    fits = (needs <= usable[who]).all(axis=1)
    for host in {node.host_id for node in nodes if node.host_id}:
        here = np.array([node.host_id == host for node in nodes])
        on_it = [node.ram_bytes for node in request.nodes if node.host_id == host]
        if len(on_it) > 1:
            ram = min(on_it)
            most = int(ram * (1 - request.reserves.host_reserve_fraction))
            fits &= (needs * here[who]).sum(axis=1) <= most
    who, begins, ends = who[fits], begins[fits], ends[fits]
    times = time[who, begins, ends]
    latency, only_rdma = times.sum(axis=1), np.ones(len(who), dtype=bool)
    if size > 1:
        latency = latency + hop[who[:, :-1], who[:, 1:]].sum(axis=1) + back[who[:, -1], who[:, 0]]
        only_rdma = rdma[who[:, :-1], who[:, 1:]].all(axis=1) & rdma[who[:, -1], who[:, 0]]
    slowest = times.max(axis=1) if len(who) else np.zeros(0)
    objective = {
        "latency": latency,
        "throughput": slowest,
        "balanced": np.maximum(latency, request.slots * slowest),
    }[request.objective]
    stages = np.stack([who, begins, ends], axis=-1).tolist()
    return objective, load[who, begins, ends].sum(axis=1), only_rdma, stages
