from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from macmesh_placement import (
    LocalPlacementError,
    Placement,
    PlanRequest,
    TensorShard,
    plan,
)
from macmesh_placement.explain import Alternative, alternatives, over_rdma
from macmesh_placement.readd import readd
from macmesh_placement.terms import terms_of
from placement import drawn
from placement.test_planner import GB, ask, make_model, make_node, placed, refused

SEEDS = st.integers(0, 2**48)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_every_placement_adds_up_again_from_the_request_alone(seed: int) -> None:
    request = drawn.request(seed)
    result = plan(request)
    if isinstance(result, Placement):
        sums = readd(result, request)
        assert [terms.node_id for terms in sums.stages] == [stage.node_id for stage in result.stages]


def test_the_terms_of_a_stage_can_be_added_up_by_hand() -> None:
    request = ask([make_node("a", 8), make_node("b", 8, bandwidth_gb_per_s=200.0)], stage_count=2)
    sums = readd(placed(request), request)
    cache = 12 * 4096 * 1024
    assert sum(t.decode_read_bytes for t in sums.stages) == 12 * GB + cache + 64 * 2 + GB // 2 + 64
    by_hand = sum(t.decode_read_bytes / t.bytes_per_second for t in sums.stages)
    hops = 2 * 0.0003 + (64 * 2 + 4) / 5e9
    assert sums.latency_seconds == pytest.approx(by_hand + hops, rel=1e-12)
    assert [t.hop_seconds for t in sums.stages] == pytest.approx(
        [0.0003 + 128 / 5e9, 0.0003 + 4 / 5e9], rel=1e-12
    )


def _doctored(placement: Placement) -> list[tuple[str, Placement]]:
    first, *rest = placement.stages
    last = placement.stages[-1]

    def with_first(**changes: Any) -> Placement:
        return replace(placement, stages=(replace(first, **changes), *rest))

    proof = placement.certificate
    entry, *entries = first.ledger.entries
    lighter = replace(entry, size_bytes=entry.size_bytes - 1)
    return [
        ("predicted_seconds", with_first(predicted_seconds=first.predicted_seconds * 1.001)),
        ("hop_seconds", with_first(hop_seconds=first.hop_seconds + 1e-4)),
        ("bytes_to_load", with_first(bytes_to_load=first.bytes_to_load - 1)),
        ("bytes_to_load", replace(placement, bytes_to_load=placement.bytes_to_load + 1)),
        ("ledger", with_first(ledger=replace(first.ledger, entries=(lighter, *entries)))),
        ("ledger", with_first(ledger=replace(first.ledger, usable_bytes=first.ledger.usable_bytes + 1))),
        ("cover", with_first(end_layer=first.end_layer - 1)),
        ("distinct", with_first(node_id=last.node_id)),
        ("distinct", with_first(node_id="stranger")),
        ("slowest", replace(placement, predicted_slowest_stage_seconds=1.0)),
        ("objective", replace(placement, certificate=replace(proof, objective_seconds=1.0))),
        ("best", replace(placement, certificate=replace(proof, best_objective_seconds=1e-9))),
    ]


def test_a_placement_that_does_not_add_up_is_found_out() -> None:
    request = ask([make_node("a", 8), make_node("b", 8)])
    placement = placed(request)
    for named, doctored in _doctored(placement):
        with pytest.raises(LocalPlacementError, match=named):
            readd(doctored, request)
    with pytest.raises(LocalPlacementError, match="stage_count"):
        readd(placement, replace(request, stage_count=1))
    with pytest.raises(LocalPlacementError, match="pinned"):
        readd(placement, replace(request, head_node_id=placement.stages[1].node_id))


def _key(placement: Placement) -> list[tuple[str, int, int]]:
    return [(stage.node_id, stage.first_layer, stage.end_layer) for stage in placement.stages]


@settings(max_examples=60, deadline=None)
@given(SEEDS)
@example(1280)  # leaving out the node that reads less RAM must not free any
def test_alternatives_are_true_different_and_sorted(seed: int) -> None:
    request = drawn.request(seed)
    result = plan(request)
    found = alternatives(request, result)
    keys = [_key(a.placement) for a in found if a.placement is not None]
    assert all(keys.count(key) == 1 for key in keys)
    assert all((a.placement is None) != (a.refusal is None) for a in found)
    assert all(a.reason and a.label for a in found)
    assert all(a.to_json()["label"] == a.label for a in found)
    fits = [a.placement is not None for a in found]
    assert fits == sorted(fits, reverse=True)
    if isinstance(result, Placement):
        assert _key(result) not in keys
        seconds = [terms_of(a.placement, request).objective_seconds for a in found if a.placement]
        assert seconds == sorted(seconds)
        _assert_none_is_better(request, result, found)


def _assert_none_is_better(request: PlanRequest, result: Placement, found: tuple[Alternative, ...]) -> None:
    ours = result.certificate.objective_seconds
    for alternative in found:
        placement = alternative.placement
        if placement is None or request.stage_count not in {0, len(placement.stages)}:
            continue
        theirs = terms_of(placement, request).objective_seconds
        if result.certificate.exact:
            assert theirs >= result.certificate.best_objective_seconds * (1 - 1e-9)
        mixed = over_rdma(result, request) and not over_rdma(placement, request)
        if theirs <= ours and result.certificate.fewest_bytes_proved and not mixed:
            assert placement.bytes_to_load >= result.bytes_to_load
        if theirs <= ours and mixed:
            assert alternative.reason.endswith("not all of its hops are over RDMA")
        if theirs > ours * (1 + request.tolerance) * (1 + 1e-9):
            assert "slower" in alternative.reason


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([drawn.request, drawn.crowded]))
@example(1280, drawn.request)
def test_leaving_a_node_out_never_makes_a_plan_better(seed: int, draw: Callable[[int], PlanRequest]) -> None:
    request = draw(seed)
    result = plan(request)
    for node in request.nodes:
        excluded = request.excluded_node_ids | {node.node_id}
        if excluded == request.excluded_node_ids or node.node_id in request.pinned_node_ids:
            continue
        without = plan(replace(request, excluded_node_ids=excluded))
        if isinstance(without, Placement):
            assert isinstance(result, Placement)
            assert result.certificate.exact
            # Rates that were not measured are taken from the nodes that take part: timed as the request is.
            theirs = terms_of(without, request).objective_seconds
            assert theirs >= result.certificate.best_objective_seconds * (1 - 1e-9)


def by_label(request: PlanRequest) -> dict[str, Alternative]:
    return {a.label: a for a in alternatives(request, plan(request))}


def test_the_reason_says_how_much_slower() -> None:
    request = ask([make_node("a", 20), make_node("b", 20, bandwidth_gb_per_s=200.0)], objective="latency")
    found = by_label(request)
    assert found["without a"].reason.startswith("100.0 % slower: ")
    assert found["without a"].reason.endswith(" ms per token")
    assert "2 stages" in found


def test_the_reason_says_what_more_would_be_loaded() -> None:
    held = frozenset(range(12))
    resident = make_node("a", 20, resident_layers=held, holds_embedding=True, holds_head=True)
    found = by_label(ask([resident, make_node("b", 20)]))
    assert found["without a"].reason == "equal within 2 %, but loads 13.0 GB more"


def test_the_reason_says_what_is_missing_where() -> None:
    nodes = [make_node("id-a", 9), replace(make_node("id-b", 5), name="laptop")]
    found = by_label(ask(nodes))
    assert found["1 stage"].reason.startswith("does not fit: 4.1 GB missing on id-a")
    assert found["1 stage"].refusal is not None
    assert "without id-b" not in found, "the same miss as one stage"
    assert "missing on laptop" in found["without id-a"].reason


def test_the_split_in_proportion_to_memory_fails_where_the_plan_fits() -> None:
    found = by_label(ask([make_node("a", 6.7), make_node("b", 6.7), make_node("c", 0.9)]))
    by_hand = found["layers in proportion to memory"]
    assert by_hand.placement is None
    assert by_hand.reason == "does not fit: 605.0 MB missing on c"


def test_the_split_in_proportion_to_memory_may_only_be_slower() -> None:
    nodes = [make_node("a", 20), make_node("b", 20, bandwidth_gb_per_s=200.0)]
    request = ask(nodes, stage_count=2)
    by_hand = by_label(request)["layers in proportion to memory"]
    assert by_hand.placement is not None
    assert "slower" in by_hand.reason
    readd(by_hand.placement, request)


def test_the_nearest_misses_of_a_refusal_come_first() -> None:
    request = ask([make_node(name, 4) for name in "abc"])
    assert refused(request)
    found = alternatives(request, plan(request))
    sizes = [a.refusal.bytes_to_add for a in found if a.refusal is not None]
    assert sizes == sorted(size for size in sizes if size is not None)
    assert found[0].label == "3 stages"


def test_a_forced_number_of_stages_shows_what_it_costs() -> None:
    request = ask([make_node("a", 20), make_node("b", 20)], stage_count=2)
    assert by_label(request)["1 stage"].reason.endswith(", but 2 stages were asked for")


def test_tensor_parallelism_is_an_alternative_with_its_own_terms() -> None:
    model = make_model()
    half = replace(
        model.layers[0], weight_bytes=GB // 2, active_weight_bytes=GB // 2, active_parameters=GB // 4
    )
    shard = TensorShard(
        ways=2,
        layers=(half,) * 12,
        embedding_bytes=model.embedding_bytes,
        norm_bytes=model.norm_bytes,
        head_bytes=model.head_bytes // 2,
        shared_bytes=0,
        reductions_per_step=24,
        reduced_bytes_per_token=24 * 128,
    )
    nodes = [make_node("a", 20), make_node("b", 20)]
    request = ask(nodes, profile=replace(model, tensor_shards=(shard,)), hop_latency_seconds=1e-5)
    tensor = by_label(request)["every layer split over 2 nodes"]
    assert tensor.placement is not None
    assert tensor.placement.parallelism == "tensor"
    assert tensor.reason.endswith("tensor parallelism was not allowed")
    allowed = replace(request, allow_tensor_parallel=True)
    chosen = placed(allowed)
    assert chosen.parallelism == "tensor"
    readd(chosen, allowed)
    assert "slower" in by_label(allowed)["1 stage"].reason


def test_more_than_eight_nodes_are_explained_in_bounded_work() -> None:
    request = ask([make_node(f"n{index:02}", 1.6 + index % 3) for index in range(20)])
    labels = {a.label for a in alternatives(request, plan(request))}
    assert not [label for label in labels if label.startswith("without")]
    assert "layers in proportion to memory" in labels


def test_a_refusal_for_no_size_has_no_misses() -> None:
    request = ask([make_node("a", 30)], context_tokens=50_000)
    assert refused(request).kind == "above_position_limit"
    assert alternatives(request, plan(request)) == ()
