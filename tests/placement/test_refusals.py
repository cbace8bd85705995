"""Refusals against exhaustive search that shares no code with them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_placement import LocalProfileError, ModelProfile, PlanRequest, Refusal, plan, result_from_json
from macmesh_placement.cover import Cover
from macmesh_placement.feasibility import at_context, fits
from macmesh_placement.planner import attempt
from macmesh_placement.refusal import refuse_for_size
from macmesh_placement.whatif import what_ifs
from placement import drawn
from placement.brute_force import needed_bytes
from placement.test_planner import GB, ask, make_model, make_node, refused

SEEDS = st.integers(0, 2**48)
Layout = list[tuple[Any, int, int]]


def layouts(request: PlanRequest) -> Iterator[Layout]:
    """Every way to place the layers that pins and the number of stages allow, size aside."""
    profile = request.profile
    pinned = {*request.required_node_ids, request.head_node_id, request.tail_node_id} - {""}
    for size in range(1, len(request.nodes) + 1):
        if request.stage_count not in {0, size}:
            continue
        for order in permutations(request.nodes, size):
            names = [node.node_id for node in order]
            if not pinned <= set(names):
                continue
            if request.head_node_id not in {"", names[0]} or request.tail_node_id not in {"", names[-1]}:
                continue
            for cuts in combinations(profile.cut_points, size - 1):
                marks = (0, *cuts, profile.layer_count)
                yield list(zip(order, marks, marks[1:], strict=False))


def lacking(request: PlanRequest, layout: Layout) -> tuple[int, int]:
    """Bytes of RAM that machines lack for it, and bytes of usable memory that nodes lack."""
    needs = [needed_bytes(request, *stage) for stage in layout]
    missing = sum(max(0, need - node.usable_bytes) for need, (node, _, _) in zip(needs, layout, strict=True))
    ram = 0
    for host in {node.host for node in request.nodes}:
        members = [node for node in request.nodes if node.host == host]
        if len(members) > 1:
            budget = int(min(n.ram_bytes for n in members) * (1 - request.reserves.host_reserve_fraction))
            used = sum(need for need, (node, _, _) in zip(needs, layout, strict=True) if node.host == host)
            ram += max(0, used - budget)
    return ram, missing


def pinned_request(seed: int, data: st.DataObject) -> PlanRequest:
    request = replace(drawn.request(seed).without_pins(), excluded_node_ids=frozenset())
    names = [node.node_id for node in request.nodes]
    nobody = st.just("")
    head = data.draw(st.one_of(nobody, nobody, st.sampled_from(names)))
    tail = data.draw(st.one_of(nobody, nobody, st.sampled_from([n for n in names if n != head] or [""])))
    required = data.draw(st.one_of(st.just(frozenset[str]()), st.frozensets(st.sampled_from(names))))
    pins = {*required, head, tail} - {""}
    if 0 < request.stage_count < len(pins):
        request = replace(request, stage_count=len(pins))
    return replace(request, head_node_id=head, tail_node_id=tail, required_node_ids=required)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.data())
def test_covers_are_possible_exactly_where_a_layout_lacks_nothing(seed: int, data: st.DataObject) -> None:
    request = pinned_request(seed, data)
    expected = any(lacking(request, layout) == (0, 0) for layout in layouts(request))
    assert Cover(request, request.nodes, request.resolved_context_tokens).possible() == expected


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.data())
def test_the_fewest_bytes_to_add_are_those_of_the_best_layout(seed: int, data: st.DataObject) -> None:
    request = pinned_request(seed, data)
    expected = min((lacking(request, layout) for layout in layouts(request)), default=None)
    short = Cover(request, request.nodes, request.resolved_context_tokens).fewest()
    if expected is None:
        assert short is None
        return
    assert short is not None
    assert short.hosts_respected
    at = [0, *request.profile.cut_points, request.profile.layer_count]
    layout = [(request.nodes[node], at[a], at[b]) for node, a, b in short.stages]
    assert lacking(request, layout) == expected
    assert short.missing_bytes == expected[1]
    assert short.needed_bytes == [needed_bytes(request, *stage) for stage in layout]


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_adding_the_bytes_is_enough_and_one_byte_less_anywhere_is_not(seed: int) -> None:
    request = drawn.request(seed)
    request = replace(request, reserves=replace(request.reserves, host_reserve_fraction=0.0))
    refusal = plan(request)
    if not isinstance(refusal, Refusal) or refusal.bytes_to_add is None:
        return
    assert refusal.bytes_to_add == sum(deficit.deficit_bytes for deficit in refusal.deficits)
    more = {deficit.node_id: deficit.deficit_bytes for deficit in refusal.deficits}
    ram = {deficit.host_id: deficit.deficit_bytes for deficit in refusal.host_deficits}

    def with_added(usable: dict[str, int], hosts: dict[str, int]) -> PlanRequest:
        nodes = [
            replace(
                node,
                usable_bytes=node.usable_bytes + usable.get(node.node_id, 0),
                ram_bytes=min(n.ram_bytes for n in request.nodes if n.host == node.host)
                + hosts.get(node.host, 0),
            )
            for node in request.nodes
        ]
        return replace(request, nodes=tuple(nodes))

    assert plan(with_added(more, ram)).feasible
    for name, size in more.items():
        assert not plan(with_added({**more, name: size - 1}, ram)).feasible
    for host, size in ram.items():
        assert not plan(with_added(more, {**ram, host: size - 1})).feasible


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_every_statement_of_a_refusal_is_true(seed: int) -> None:
    request = drawn.request(seed)
    refusal = plan(request)
    if not isinstance(refusal, Refusal) or refusal.largest_context_tokens is None:
        return
    largest = refusal.largest_context_tokens
    assert plan(at_context(request, largest)).feasible if largest else True
    assert not plan(at_context(request, largest + 1)).feasible
    for what_if in refusal.what_ifs:
        name, _, value = what_if.change.partition("=")
        changed = _changed(request, name, value)
        assert plan(changed).feasible == what_if.feasible
        if what_if.largest_context_tokens is not None:
            assert what_if.largest_context_tokens > largest
            again = plan(changed)
            assert isinstance(again, Refusal)
            assert again.largest_context_tokens == what_if.largest_context_tokens
        if name == "slots" and what_if.feasible:
            assert not plan(replace(request, slots=int(value) + 1)).feasible
    if refusal.binding == "stage_count":
        assert plan(replace(request, stage_count=0)).feasible
    if refusal.binding == "host_ram":
        assert plan(
            replace(request, nodes=tuple(replace(node, host_id="") for node in request.nodes))
        ).feasible
    assert (refusal.binding == "memory") == (not refusal.binding_constraints)
    assert result_from_json(json.dumps(refusal.to_json())) == refusal


def _changed(request: PlanRequest, name: str, value: str) -> PlanRequest:
    if name == "pins":
        return request.without_pins()
    if name == "tensor_parallel":
        return replace(request, allow_tensor_parallel=True)
    fields: dict[str, Any] = {
        "excluded": {"excluded_node_ids": frozenset()},
        "slots": {"slots": value and int(value.replace("none", "0"))},
        "stage_count": {"stage_count": 0},
        "prefill_chunk_tokens": {"prefill_chunk_tokens": value and int(value.replace("none", "0"))},
    }
    return replace(request, **fields[name])


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_feasibility_is_the_planners(seed: int) -> None:
    request = drawn.request(seed, max_nodes=5, max_layers=8)
    assert fits(request, attempt) == plan(request).feasible


def test_granularity_decides_where_the_memory_would_do_together() -> None:
    coarse = make_model(3, layers=_layers(3, 6 * GB), embedding_bytes=GB, head_bytes=GB)
    refusal = refused(ask([make_node("a", 5), make_node("b", 13), make_node("c", 11)], profile=coarse))
    assert refusal.binding == "granularity"
    assert "no cut between layers fits" in refusal.message


def _layers(count: int, weight_bytes: int) -> tuple[Any, ...]:
    layer = replace(make_model(1).layers[0], weight_bytes=weight_bytes, active_weight_bytes=weight_bytes)
    return (layer,) * count


def test_weights_decide_where_nothing_else_helps_and_caches_before_them() -> None:
    nodes = [make_node("a", 6), make_node("b", 6)]
    assert refused(ask(nodes)).binding == "weights"
    tight = refused(ask([make_node("a", 6.9), make_node("b", 6.9)], context_tokens=32_768))
    assert tight.binding == "cache"
    assert set(tight.binding_constraints) >= {"cache", "weights"}


def test_no_single_line_decides_a_hopeless_ask() -> None:
    refusal = refused(ask([make_node("a", 0.5)], context_tokens=32_768))
    assert refusal.binding == "memory"
    assert refusal.binding_constraints == ()


def test_the_forced_number_of_stages_is_named_and_dropping_it_offered() -> None:
    refusal = refused(ask([make_node(name, 5) for name in "abc"], stage_count=2))
    assert refusal.binding == "stage_count"
    [offer] = [what_if for what_if in refusal.what_ifs if what_if.change == "stage_count=0"]
    assert offer.feasible
    assert offer.message == "With any number of stages it fits."


def test_fewer_slots_are_offered_with_the_largest_number_that_fits() -> None:
    refusal = refused(ask([make_node("a", 14)], context_tokens=8192, slots=9))
    [offer] = [what_if for what_if in refusal.what_ifs if what_if.change.startswith("slots=")]
    slots = int(offer.change.partition("=")[2])
    assert offer.feasible
    assert plan(ask([make_node("a", 14)], context_tokens=8192, slots=slots)).feasible
    assert not plan(ask([make_node("a", 14)], context_tokens=8192, slots=slots + 1)).feasible


def test_taking_the_excluded_nodes_back_is_offered() -> None:
    nodes = [make_node("a", 8), replace(make_node("b", 8), name="studio")]
    refusal = refused(ask(nodes, excluded_node_ids=frozenset("b")))
    [offer] = [what_if for what_if in refusal.what_ifs if what_if.change == "excluded=none"]
    assert offer.feasible
    assert offer.message == "With studio taking part it fits."


def _quantised(profile: ModelProfile, bits: int) -> ModelProfile:
    layers = tuple(
        replace(
            layer,
            caches=tuple(replace(p, bytes_per_token=p.bytes_per_token * bits // 16) for p in layer.caches),
            attention=layer.attention and replace(layer.attention, fused=False),
        )
        for layer in profile.layers
    )
    return replace(profile, layers=layers)


def test_quantised_caches_are_offered_with_their_price() -> None:
    request = ask([make_node("a", 14)], context_tokens=32_768, prefill_chunk_tokens=128)
    offers = what_ifs(request, attempt, 0, _quantised)
    [eight] = [offer for offer in offers if offer.change == "kv_bits=8"]
    assert eight.feasible
    assert "off the fused attention kernel" in eight.message


def test_caches_that_cannot_be_quantised_are_not_offered() -> None:
    def impossible(_profile: ModelProfile, _bits: int) -> ModelProfile:
        raise LocalProfileError("cache kind 'ring' cannot be quantised")

    request = ask([make_node("a", 14)], context_tokens=32_768)
    assert not [o for o in what_ifs(request, attempt, 0, impossible) if o.change.startswith("kv_bits")]


def test_more_than_eight_nodes_say_what_was_searched() -> None:
    refusal = refused(ask([make_node(f"n{index}", 1.0) for index in range(10)]))
    assert any("8 roomiest" in note for note in refusal.notes)
    many = refused(ask([make_node(f"n{index}", 0.9) for index in range(20)]))
    assert any("more than 12 nodes" in note for note in many.notes)


def test_pins_that_make_it_too_large_are_named() -> None:
    request = ask([make_node("big", 14), make_node("small", 0.1)], required_node_ids=frozenset({"small"}))
    refusal = refuse_for_size(request, attempt)
    assert refusal.kind == "pins"
    assert refusal.binding == "pins"
    assert [what_if.change for what_if in refusal.what_ifs if what_if.feasible] == ["pins=none"]


@pytest.mark.parametrize("change", [{"kind": "mood"}, {"notes": [1]}, {"what_ifs": [{}]}, {"deficits": 3}])
def test_damaged_refusals_are_refused(change: dict[str, Any]) -> None:
    value = refused(ask([make_node("a", 5)])).to_json()
    with pytest.raises(ValueError, match=next(iter(change))):
        result_from_json(json.dumps({**value, **change}))
