"""A planner that tries everything. It shares nothing with the real one but the data it reads."""

from itertools import combinations, permutations
from typing import NamedTuple

from macmesh_placement import ModelProfile, NodeCapacity, PlanRequest


class Plan(NamedTuple):
    objective: float
    load_bytes: int
    stages: tuple[tuple[str, int, int], ...]


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
        widest = max(widest, layer.activation_bytes_per_token)
        for piece in layer.caches:
            need += slots * (piece.reserved_bytes(context) + piece.prefill_bytes(context, chunk))
            arrays += slots * piece.array_count
        if layer.attention is not None:
            scores = max(
                scores, layer.attention.scratch_bytes(context, chunk, fused_kernel=node.fused_attention)
            )
    if head:
        need += profile.embedding_bytes
        for piece in profile.head_caches:
            need += slots * (piece.reserved_bytes(context) + piece.prefill_bytes(context, chunk))
            arrays += slots * piece.array_count
    if tail:
        need += profile.norm_bytes + profile.head_bytes + slots * profile.vocab_size * 4 * 6
        if profile.tied and not head:
            need += profile.embedding_bytes
    if not (head and tail):
        need += reserves.transport_pool_bytes
    hidden = chunk * profile.hidden_size * profile.activation_bytes
    return need + arrays * 16384 + 2 * (chunk * widest + hidden) + scores


def stage_seconds(request: PlanRequest, node: NodeCapacity, first: int, end: int) -> float:
    profile = request.profile
    context = request.resolved_context_tokens
    speed = node.bandwidth_gb_per_s * 1e9
    seconds = 0.0
    for layer in profile.layers[first:end]:
        read = layer.active_weight_bytes + sum(piece.read_bytes(context) for piece in layer.caches)
        compute = 2 * layer.active_parameters / (node.flops_tflops * 1e12) if node.flops_tflops else 0.0
        seconds += max(read / speed, compute)
    if first == 0:
        seconds += profile.hidden_size * profile.activation_bytes / speed
    if end == profile.layer_count:
        seconds += (
            profile.norm_bytes + (profile.embedding_bytes if profile.tied else profile.head_bytes)
        ) / speed
    return seconds


def load_bytes(profile: ModelProfile, node: NodeCapacity, first: int, end: int) -> int:
    load = sum(profile.layers[i].weight_bytes for i in range(first, end) if i not in node.resident_layers)
    head, tail = first == 0, end == profile.layer_count
    if head and not node.holds_embedding and not (tail and profile.tied and node.holds_head):
        load += profile.embedding_bytes
    if tail and not node.holds_head:
        load += profile.norm_bytes + profile.head_bytes
        if profile.tied and not head:
            load += profile.embedding_bytes
    return load


def plans(request: PlanRequest) -> list[Plan]:
    """Every plan that fits, with its objective and the bytes it loads."""
    profile = request.profile
    row = profile.hidden_size * profile.activation_bytes
    found = []
    nodes = [node for node in request.nodes if node.node_id not in request.excluded_node_ids]
    for size in range(1, len(nodes) + 1):
        if request.stage_count not in {0, size}:
            continue
        for order in permutations(nodes, size):
            for cuts in combinations(profile.cut_points, size - 1):
                marks = (0, *cuts, profile.layer_count)
                stages = list(zip(order, marks, marks[1:], strict=False))
                needs = [needed_bytes(request, *stage) for stage in stages]
                if any(need > node.usable_bytes for need, (node, _, _) in zip(needs, stages, strict=True)):
                    continue
                if not _hosts_hold(request, stages, needs):
                    continue
                times = [stage_seconds(request, *stage) for stage in stages]
                latency = sum(times)
                if size > 1:
                    latency += size * request.hop_latency_seconds
                    latency += (size - 1) * row / (request.link_gb_per_s * 1e9)
                objective = {
                    "latency": latency,
                    "throughput": max(times),
                    "balanced": max(latency, request.slots * max(times)),
                }[request.objective]
                loads = sum(load_bytes(profile, *stage) for stage in stages)
                found.append(Plan(objective, loads, tuple((n.node_id, a, b) for n, a, b in stages)))
    return found


def _hosts_hold(request: PlanRequest, stages: list[tuple[NodeCapacity, int, int]], needs: list[int]) -> bool:
    for host in {node.host_id for node, _, _ in stages if node.host_id}:
        ram = min(node.ram_bytes for node in request.nodes if node.host_id == host)
        used = sum(need for need, (node, _, _) in zip(needs, stages, strict=True) if node.host_id == host)
        on_host = [node for node in request.nodes if node.host_id == host]
        if len(on_host) > 1 and used > int(ram * (1 - request.reserves.host_reserve_fraction)):
            return False
    return True
