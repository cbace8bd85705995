"""What-ifs of a refusal: changes to the ask, each really planned."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from macmesh_placement.errors import LocalProfileError
from macmesh_placement.feasibility import Attempt, fits, largest, largest_context
from macmesh_placement.profile import ModelProfile
from macmesh_placement.request import PlanRequest
from macmesh_placement.result import WhatIf

Quantise = Callable[[ModelProfile, int], ModelProfile]
"""The profile with caches of that many bits; raises `LocalProfileError` where a cache has no such form."""

_KV_BITS = (8, 4)
_PREFILL_CHUNKS_TOKENS = (512, 256)

#: Most nodes for which a change that does not fit is searched for the context that would.
MOST_NODES_FOR_CONTEXTS = 12


@dataclass(frozen=True, slots=True)
class _Change:
    name: str
    subject: str
    request: PlanRequest
    caveat: str = ""


def what_ifs(
    request: PlanRequest,
    attempt: Attempt,
    largest_tokens: int,
    quantise: Quantise = ModelProfile.with_kv_bits,
) -> tuple[WhatIf, ...]:
    """The changes that make the ask fit, or a larger context than ``largest_tokens``.

    Args:
        request: An ask that does not fit.
        attempt: The planner.
        largest_tokens: The largest context that fits without a change; 0 where none does.
        quantise: How a profile's caches are quantised.
    """
    found = []
    fewer = _fewer_slots(request, attempt, largest_tokens)
    if fewer is not None:
        found.append(fewer)
    for change in _changes(request, quantise):
        result = _tried(change, attempt, largest_tokens)
        if result is not None:
            found.append(result)
    return tuple(found)


def _fewer_slots(request: PlanRequest, attempt: Attempt, largest_tokens: int) -> WhatIf | None:
    """The largest number of slots that fits at the asked context; where none does, the context of one."""
    if request.slots == 1:
        return None
    most = largest(lambda slots: fits(replace(request, slots=slots), attempt), request.slots)
    slots = max(1, most)
    plural = "slot" if slots == 1 else "slots"
    change = _Change(f"slots={slots}", f"{slots} {plural}", replace(request, slots=slots))
    return _tried(change, attempt, largest_tokens)


def _changes(request: PlanRequest, quantise: Quantise) -> Iterator[_Change]:
    if request.pinned_node_ids:
        yield _Change("pins=none", "no node pinned", request.without_pins())
    if request.stage_count:
        yield _Change("stage_count=0", "any number of stages", replace(request, stage_count=0))
    if request.excluded_node_ids:
        labels = sorted(n.label for n in request.nodes if n.node_id in request.excluded_node_ids)
        names = ", ".join(labels)
        yield _Change(
            "excluded=none", f"{names} taking part", replace(request, excluded_node_ids=frozenset())
        )
    chunks = [chunk for chunk in _PREFILL_CHUNKS_TOKENS if chunk < request.prefill_chunk_tokens]
    for chunk in chunks:
        smaller = replace(request, prefill_chunk_tokens=chunk)
        yield _Change(
            f"prefill_chunk_tokens={chunk}", f"prefill steps of {chunk} tokens", smaller, _SLOWER_PREFILL
        )
    bits_now = request.profile.kv_bits
    for bits in _KV_BITS:
        if bits_now and bits_now <= bits:
            continue
        try:
            quantised = quantise(request.profile, bits)
        except LocalProfileError:
            continue
        yield _Change(
            f"kv_bits={bits}", f"caches of {bits} bits", replace(request, profile=quantised), _UNFUSED
        )
    if not request.allow_tensor_parallel and request.profile.tensor_shards:
        tensor = replace(request, allow_tensor_parallel=True)
        yield _Change("tensor_parallel", "every layer split over equal nodes", tensor)


_UNFUSED = (
    "quantised caches change the output slightly and take the model off the fused attention kernel, "
    "whose score matrix is counted"
)
_SLOWER_PREFILL = "prompts are then taken in more steps"


def _tried(change: _Change, attempt: Attempt, largest_tokens: int) -> WhatIf | None:
    request = change.request
    caveat = f" ({change.caveat})" if change.caveat else ""
    asked = request.resolved_context_tokens
    if fits(request, attempt):
        message = f"With {change.subject} it fits{caveat}."
        return WhatIf(change=change.name, message=message, feasible=True, largest_context_tokens=None)
    if len(request.nodes) > MOST_NODES_FOR_CONTEXTS:
        return None
    tokens = largest_context(request, attempt, asked, largest_tokens)
    if tokens == largest_tokens:
        return None
    return WhatIf(
        change=change.name,
        message=f"With {change.subject} a context of {tokens} fits, {asked} does not{caveat}.",
        feasible=False,
        largest_context_tokens=tokens,
    )
