"""Which constraint decides that an ask does not fit.

Found by relaxation, never guessed: each constraint is lifted alone, all others kept, and the ask tried again.
Those that make it fit are *binding*. The one that decides is the first of:

1. ``pins``: any node may take any place, or none;
2. ``stage_count``: any number of stages;
3. ``host_ram``: nodes of one machine do not share its RAM;
4. ``granularity``: layers, embedding and head can be divided at any byte, each part with the least scratch
   of any layer. So the nodes' memory would be enough together, but no cut fits;
5. the largest line of the ledger that can be lessened by asking for less: ``cache`` (with the memory that
   prefill steps add to it), ``attention_scratch``, ``prefill_scratch``, ``sampling``, ``transport_pool``,
   ``allocator_slack`` or ``runtime_reserve``, each taken as next to nothing;
6. ``weights``: the parameters, embedding and head included, weigh nothing;
7. ``memory``: no single one.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np

from macmesh_placement.feasibility import Attempt, fits, taking_part
from macmesh_placement.instance import MAX_EXACT_NODES
from macmesh_placement.layers import LayerProfile
from macmesh_placement.ledger import stage_ledger
from macmesh_placement.profile import ModelProfile
from macmesh_placement.request import PlanRequest
from macmesh_placement.scratch import Scratch
from macmesh_placement.tables import stage_totals


def binding_constraints(request: PlanRequest, attempt: Attempt) -> list[str]:
    """The constraints that, lifted alone, make the ask fit; the one that decides comes first."""
    found = []
    if request.pinned_node_ids and fits(request.without_pins(), attempt):
        found.append("pins")
    if request.stage_count and fits(replace(request, stage_count=0), attempt):
        found.append("stage_count")
    if _shares_hosts(request) and fits(request, attempt, share_hosts=False):
        found.append("host_ram")
    if fits_when_divisible(request):
        found.append("granularity")
    sizes = _line_sizes(request)
    lines = [name for name, lift in _LIFTS.items() if sizes.get(name) and fits(lift(request), attempt)]
    lines.sort(key=lambda name: (name == "weights", -sizes[name], name))
    return found + lines


def _shares_hosts(request: PlanRequest) -> bool:
    budgets = request.host_budgets_bytes
    return any(node.host in budgets for node in taking_part(request))


def _line_sizes(request: PlanRequest) -> dict[str, int]:
    """Bytes of each line where the whole model is one stage, and of the transport where there is one."""
    nodes = taking_part(request)
    ledger = stage_ledger(
        request.profile,
        request.demand(),
        first_layer=0,
        end_layer=request.profile.layer_count,
        usable_bytes=0,
        fused_attention=all(node.fused_attention for node in nodes),
    )
    sizes = {entry.name: entry.size_bytes for entry in ledger.entries}
    sizes["weights"] = ledger.weights_bytes
    sizes["cache"] = sizes.get("cache", 0) + sizes.get("cache_prefill", 0)
    if len(nodes) > 1:
        sizes["transport_pool"] = request.reserves.transport_pool_bytes
    return sizes


def _with_layers(profile: ModelProfile, change: Callable[[LayerProfile], LayerProfile]) -> ModelProfile:
    """The profile with every layer changed; layers that were one object stay one."""
    known = {id(layer): change(layer) for layer in profile.layers}
    return replace(profile, layers=tuple(known[id(layer)] for layer in profile.layers))


def _no_weights(profile: ModelProfile) -> ModelProfile:
    bare = _with_layers(profile, lambda layer: replace(layer, weight_bytes=0, active_weight_bytes=0))
    return replace(bare, embedding_bytes=0, head_copy_bytes=None, norm_bytes=0, head_bytes=0, shared_bytes=0)


def _no_caches(profile: ModelProfile) -> ModelProfile:
    return replace(_with_layers(profile, lambda layer: replace(layer, caches=())), head_caches=())


def _no_attention(profile: ModelProfile) -> ModelProfile:
    return _with_layers(profile, lambda layer: replace(layer, attention=None))


def _no_activations(profile: ModelProfile) -> ModelProfile:
    bare = _with_layers(profile, lambda layer: replace(layer, scratch=Scratch()))
    return replace(bare, hidden_size=1, activation_bytes=1, handover_bytes=0)


def _no_arrays(profile: ModelProfile) -> ModelProfile:
    def change(layer: LayerProfile) -> LayerProfile:
        caches = tuple(replace(piece, array_count=0) for piece in layer.caches)
        return replace(layer, parameter_count=0, caches=caches)

    head = tuple(replace(piece, array_count=0) for piece in profile.head_caches)
    return replace(_with_layers(profile, change), outer_parameter_count=0, head_caches=head)


def _on_profile(change: Callable[[ModelProfile], ModelProfile]) -> Callable[[PlanRequest], PlanRequest]:
    return lambda request: replace(request, profile=change(request.profile))


def _on_reserves(name: str) -> Callable[[PlanRequest], PlanRequest]:
    return lambda request: replace(request, reserves=replace(request.reserves, **{name: 0}))


def _no_slack(request: PlanRequest) -> PlanRequest:
    bare = _on_profile(_no_arrays)(request)
    return _on_reserves("buffer_cache_bytes")(bare)


_LIFTS: dict[str, Callable[[PlanRequest], PlanRequest]] = {
    "cache": _on_profile(_no_caches),
    "attention_scratch": _on_profile(_no_attention),
    "prefill_scratch": _on_profile(_no_activations),
    "sampling": _on_profile(lambda profile: replace(profile, vocab_size=1)),
    "transport_pool": _on_reserves("transport_pool_bytes"),
    "allocator_slack": _no_slack,
    "runtime_reserve": _on_reserves("runtime_reserve_bytes"),
    "weights": _on_profile(_no_weights),
}


def fits_when_divisible(request: PlanRequest) -> bool:
    """Whether several stages would fit if the model could be divided at any byte.

    Each stage pays what a stage without anything of the model pays, and the least scratch of any layer; what
    remains of the model is spread freely. Whatever fits in whole layers fits so too. Pins, a forced number of
    stages and the RAM of shared machines are kept; beyond 12 nodes it is not tried on shared machines.
    """
    nodes, profile = taking_part(request), request.profile
    if len(profile.cut_points) == 0 or request.stage_count == 1 or request.stage_count > len(nodes):
        return False
    demand = request.demand()
    bare = _no_arrays(_no_caches(_no_weights(profile)))
    still = _no_attention(_no_activations(profile))
    fixed, divisible = [], 0
    for node in nodes:
        fused = node.fused_attention
        segments = np.diagonal(stage_totals(bare, demand, fused_attention=fused), offset=1)
        fixed.append(int(segments.min()))
        empty = stage_totals(_no_attention(_no_activations(bare)), demand, fused_attention=fused)
        whole = int(stage_totals(still, demand, fused_attention=fused)[0, -1])
        divisible = whole - int(np.diagonal(empty, offset=1).min())
    spare = [node.usable_bytes - cost for node, cost in zip(nodes, fixed, strict=True)]
    pinned = request.pinned_node_ids
    needed = {index for index, node in enumerate(nodes) if node.node_id in pinned}
    if len(needed) < len(pinned) or (request.head_node_id and request.head_node_id == request.tail_node_id):
        return False
    if _shares_hosts(request):
        return _divisible_on_hosts(request, spare, fixed, needed, divisible)
    rest = sorted((gain for index, gain in enumerate(spare) if index not in needed), reverse=True)
    held = [spare[index] for index in needed]
    if request.stage_count:
        held += rest[: max(0, request.stage_count - len(needed))]
    else:
        held += [gain for gain in rest if gain > 0]
    return len(held) in _lengths(request, len(nodes)) and min(held) >= 0 and sum(held) >= divisible


def _lengths(request: PlanRequest, node_count: int) -> range:
    count = request.stage_count
    return range(count, count + 1) if count else range(2, node_count + 1)


def _divisible_on_hosts(
    request: PlanRequest, spare: list[int], fixed: list[int], needed: set[int], divisible: int
) -> bool:
    nodes = taking_part(request)
    if len(nodes) > MAX_EXACT_NODES:
        return False
    hosts: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        hosts.setdefault(node.host, []).append(index)
    budgets = request.host_budgets_bytes
    for size in _lengths(request, len(nodes)):
        for chosen in combinations(range(len(nodes)), size):
            if not needed <= set(chosen) or min(spare[i] for i in chosen) < 0:
                continue
            total = 0
            for host, members in hosts.items():
                used = [i for i in members if i in chosen]
                room = sum(spare[i] for i in used)
                if host in budgets and used:
                    room = min(room, budgets[host] - sum(fixed[i] for i in used))
                    if room < 0:
                        break
                total += room
            else:
                if total >= divisible:
                    return True
    return False
