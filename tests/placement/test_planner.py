import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_placement import (
    AttentionFacts,
    CachePiece,
    LayerProfile,
    LocalPlacementError,
    LocalPlanRequestError,
    ModelProfile,
    NodeCapacity,
    Placement,
    PlanRequest,
    Refusal,
    Reserves,
    Scratch,
    ScratchTerm,
    all_cut_points,
    plan,
    result_from_json,
    usable_for_stage_count,
)
from macmesh_placement.readd import readd
from placement import drawn

GB = 10**9
SEEDS = st.integers(0, 2**48)
NO_RESERVES = Reserves(runtime_reserve_bytes=0, buffer_cache_bytes=0, transport_pool_bytes=0)


def make_model(layer_count: int = 12, **changes: Any) -> ModelProfile:
    layer = LayerProfile(
        weight_bytes=GB,
        active_weight_bytes=GB,
        parameter_count=0,
        scratch=Scratch(live=(ScratchTerm(0, 100, 0, 0),)),
        caches=(CachePiece(kind="growing", source="KVCache", bytes_per_token=4096),),
        attention=AttentionFacts(query_heads=8, fused=True, score_bytes=2),
    )
    fields: dict[str, Any] = {
        "model_id": "model",
        "model_type": "test",
        "digest": "d",
        "layers": (layer,) * layer_count,
        "embedding_bytes": GB // 2,
        "norm_bytes": 64,
        "head_bytes": GB // 2,
        "tied": False,
        "hidden_size": 64,
        "vocab_size": 1000,
        "activation_bytes": 2,
        "position_limit": 32_768,
        "cut_points": all_cut_points(layer_count),
        "outer_parameter_count": 0,
    }
    return ModelProfile(**{**fields, **changes})


def make_node(name: str, usable_gb: float, **changes: Any) -> NodeCapacity:
    fields: dict[str, Any] = {
        "node_id": name,
        "ram_bytes": int(usable_gb * GB / 0.75),
        "usable_bytes": int(usable_gb * GB),
        "bandwidth_gb_per_s": 400.0,
    }
    return NodeCapacity(**{**fields, **changes})


def ask(nodes: list[NodeCapacity], **changes: Any) -> PlanRequest:
    fields: dict[str, Any] = {"profile": make_model(), "context_tokens": 1024, "reserves": NO_RESERVES}
    return PlanRequest(**{**fields, "nodes": tuple(nodes), **changes})


def placed(request: PlanRequest) -> Placement:
    result = plan(request)
    assert isinstance(result, Placement), result
    return result


def refused(request: PlanRequest) -> Refusal:
    result = plan(request)
    assert isinstance(result, Refusal), result
    return result


def ranges(placement: Placement) -> list[tuple[str, int, int]]:
    return [(stage.node_id, stage.first_layer, stage.end_layer) for stage in placement.stages]


def test_one_node_that_holds_everything_is_the_fastest_for_one_request() -> None:
    result = placed(ask([make_node("a", 20), make_node("b", 20)]))
    assert len(result.stages) == 1
    assert result.stages[0].ledger.size_of("transport_pool") == 0


def test_throughput_spreads_over_all_nodes_evenly() -> None:
    result = placed(ask([make_node(name, 20) for name in "abc"], objective="throughput"))
    assert len(result.stages) == 3
    assert result.predicted_slowest_stage_seconds < 0.4 * result.predicted_decode_seconds


def test_balanced_follows_the_number_of_requests_served_at_once() -> None:
    nodes = [make_node(name, 30) for name in "abc"]
    assert len(placed(ask(nodes, objective="balanced", slots=1)).stages) == 1
    assert len(placed(ask(nodes, objective="balanced", slots=8)).stages) == 3


def test_equal_nodes_get_even_stages_although_latency_ties() -> None:
    result = placed(ask([make_node("a", 12.5), make_node("b", 12.5)], objective="latency"))
    assert {end - first for _, first, end in ranges(result)} == {6}


def test_the_stage_count_can_be_forced() -> None:
    nodes = [make_node(name, 20) for name in "abcd"]
    for count in (1, 2, 3, 4):
        assert len(placed(ask(nodes, stage_count=count)).stages) == count
    assert refused(ask(nodes, stage_count=5)).kind == "stage_count"


def test_excluded_nodes_take_no_part() -> None:
    nodes = [make_node(name, 20) for name in "ab"]
    result = placed(ask(nodes, excluded_node_ids=frozenset("a")))
    assert [stage.node_id for stage in result.stages] == ["b"]
    assert refused(ask(nodes, excluded_node_ids=frozenset("ab"))).kind == "no_nodes"


def test_a_lost_node_moves_only_its_own_layers() -> None:
    survivors = [
        make_node("a", 9, resident_layers=frozenset(range(4)), holds_embedding=True),
        make_node("c", 9, resident_layers=frozenset(range(8, 12)), holds_head=True),
    ]
    result = placed(ask(survivors))
    assert result.bytes_to_load == 4 * GB
    assert [node for node, _, _ in ranges(result)] == ["a", "c"]
    assert result.certificate.fewest_bytes_proved


def test_a_much_better_plan_is_worth_moving_for() -> None:
    slow = make_node("slow", 20, bandwidth_gb_per_s=100.0, resident_layers=frozenset(range(12)))
    result = placed(ask([replace(slow, holds_embedding=True, holds_head=True), make_node("fast", 20)]))
    assert ranges(result) == [("fast", 0, 12)]


def test_nodes_of_one_host_share_its_ram() -> None:
    def nodes(ram_gb: float) -> list[NodeCapacity]:
        return [make_node(name, 8, ram_bytes=int(ram_gb * GB), host_id="mac") for name in "ab"]

    assert len(placed(ask(nodes(16))).stages) == 2
    refusal = refused(ask(nodes(13)))
    assert refusal.binding == "host_ram"
    separate = [replace(node, host_id="") for node in nodes(13)]
    assert len(placed(ask(separate)).stages) == 2


def test_a_node_with_the_tied_head_lacks_what_the_head_does_not_copy() -> None:
    tied = make_model(tied=True, head_bytes=0, head_copy_bytes=GB // 8)
    holding = make_node("a", 20, resident_layers=frozenset(range(12)), holds_head=True)
    request = ask([holding], profile=tied)
    assert placed(request).bytes_to_load == GB // 2 - GB // 8
    readd(placed(request), request)
    with_embedding = ask([replace(holding, holds_embedding=True, holds_head=False)], profile=tied)
    assert placed(with_embedding).bytes_to_load == tied.norm_bytes
    last = replace(holding, resident_layers=frozenset(), holds_head=False)
    request = ask([last, make_node("b", 20)], profile=tied, stage_count=2, tail_node_id="a")
    assert placed(request).bytes_to_load == 12 * GB + GB // 2 + tied.norm_bytes + GB // 8


def test_the_ram_of_a_machine_is_what_any_of_its_nodes_reads_least_even_one_left_out() -> None:
    readings = {"a": 16, "b": 16, "c": 13}
    nodes = [make_node(name, 8, ram_bytes=ram * GB, host_id="mac") for name, ram in readings.items()]
    request = ask(nodes, excluded_node_ids=frozenset("c"))
    assert request.host_budgets_bytes == {"mac": int(13 * GB * 0.9)}
    assert refused(request).binding == "host_ram"
    assert refused(ask(nodes)).host_deficits == refused(request).host_deficits
    alone = ask([make_node("a", 18, ram_bytes=16 * GB, host_id="mac")])
    assert not alone.host_budgets_bytes, "no other node is on it"
    assert len(placed(alone).stages) == 1


def test_tied_embeddings_are_charged_to_head_and_tail() -> None:
    tied = make_model(tied=True, head_bytes=0)
    both = placed(ask([make_node("a", 8), make_node("b", 8)], profile=tied))
    assert both.stages[0].ledger.size_of("embedding") == GB // 2
    assert both.stages[1].ledger.size_of("head") == GB // 2 + 64
    alone = placed(ask([make_node("a", 20)], profile=tied))
    assert alone.stages[0].ledger.size_of("head") == 64


def test_slots_multiply_the_cache_of_a_whole_context() -> None:
    one = placed(ask([make_node("a", 30)], context_tokens=1000))
    four = placed(ask([make_node("a", 30)], context_tokens=1000, slots=4))
    assert one.stages[0].ledger.cache_bytes == 12 * 4096 * 1024
    assert four.stages[0].ledger.cache_bytes == 4 * one.stages[0].ledger.cache_bytes


def test_a_backend_without_fused_attention_pays_for_the_scores() -> None:
    fused, unfused = (
        placed(ask([make_node("a", 30, fused_attention=flag)], prefill_chunk_tokens=256))
        for flag in (True, False)
    )
    assert fused.stages[0].ledger.size_of("attention_scratch") == 0
    assert unfused.stages[0].ledger.size_of("attention_scratch") == 2 * 8 * 256 * 1024 * 2


def test_no_context_means_the_position_limit() -> None:
    assert placed(ask([make_node("a", 30)], context_tokens=0)).context_tokens == 32_768
    unlimited = make_model(position_limit=None)
    assert refused(ask([make_node("a", 30)], context_tokens=0, profile=unlimited)).kind == "needs_context"


def test_above_the_position_limit_the_limit_is_offered() -> None:
    refusal = refused(ask([make_node("a", 300)], context_tokens=32_769))
    assert refusal.kind == "above_position_limit"
    assert refusal.position_limit == 32_768
    assert "32768" in refusal.message


def test_a_model_that_cannot_be_cut_runs_on_one_node_or_not_at_all() -> None:
    whole = make_model(cut_points=(), cut_reason="layers share their keys")
    assert len(placed(ask([make_node("a", 5), make_node("b", 20)], profile=whole)).stages) == 1
    refusal = refused(ask([make_node("a", 9), make_node("b", 9)], profile=whole))
    assert refusal.kind == "unsupported_architecture"
    assert "layers share their keys" in refusal.message


def test_the_largest_context_that_fits_is_exact() -> None:
    nodes = [make_node("a", 7.0), make_node("b", 6.9)]
    refusal = refused(ask(nodes, context_tokens=32_768))
    largest = refusal.largest_context_tokens
    assert largest
    assert refusal.binding in {"cache", "granularity"}
    placed(ask(nodes, context_tokens=largest))
    refused(ask(nodes, context_tokens=largest + 1))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_the_bytes_a_refusal_asks_for_are_enough_and_none_too_many(seed: int) -> None:
    request = drawn.request(seed).without_pins()
    request = replace(request, nodes=tuple(replace(node, host_id="") for node in request.nodes))
    refusal = plan(request)
    if not isinstance(refusal, Refusal) or not refusal.deficits:
        return
    assert refusal.bytes_to_add == sum(deficit.deficit_bytes for deficit in refusal.deficits)
    more = {deficit.node_id: deficit.deficit_bytes for deficit in refusal.deficits}

    def with_added(short_by: int) -> PlanRequest:
        first = refusal.deficits[0].node_id
        return replace(
            request,
            nodes=tuple(
                replace(
                    node,
                    usable_bytes=node.usable_bytes
                    + more.get(node.node_id, 0)
                    - (short_by if node.node_id == first else 0),
                )
                for node in request.nodes
            ),
        )

    assert plan(with_added(0)).feasible
    assert not plan(with_added(1)).feasible


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.integers(0, 50_000))
def test_less_memory_never_makes_an_infeasible_ask_feasible(seed: int, less: int) -> None:
    request = drawn.request(seed)
    smaller = replace(
        request,
        nodes=tuple(replace(node, usable_bytes=max(0, node.usable_bytes - less)) for node in request.nodes),
    )
    if plan(smaller).feasible:
        assert plan(request).feasible


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_results_survive_json_and_every_ledger_is_added_up_again(seed: int) -> None:
    result = plan(drawn.request(seed))
    assert result_from_json(json.dumps(result.to_json())) == result


def test_a_doctored_certificate_is_found_out() -> None:
    value = placed(ask([make_node("a", 20)])).to_json()
    value["stages"][0]["ledger"]["entries"][0]["size_bytes"] -= 1
    with pytest.raises(LocalPlacementError, match="total_bytes"):
        result_from_json(json.dumps(value))


def test_more_than_twelve_nodes_keep_their_order_and_the_certificate_says_so() -> None:
    nodes = [make_node(f"n{index:02}", 1.6) for index in range(20)]
    result = placed(ask(nodes))
    names = [stage.node_id for stage in result.stages]
    assert names == sorted(names)
    assert all(stage.ledger.headroom_bytes >= 0 for stage in result.stages)
    assert all(left[2] == right[1] for left, right in pairwise(ranges(result)))
    assert not result.certificate.exact
    assert "order" in result.certificate.method
    forced = placed(ask([*nodes, make_node("n99", 4)], stage_count=11))
    assert len(forced.stages) == 11


def test_unknown_bandwidth_is_taken_as_the_slowest_and_noted() -> None:
    result = placed(ask([make_node("a", 20, bandwidth_gb_per_s=0.0), make_node("b", 20)]))
    assert result.predicted_decode_seconds > 0
    assert any("bandwidth" in note for note in result.certificate.notes)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_cap_within_the_range_forces_the_number_of_stages(count: int) -> None:
    request = ask([make_node("a", 1)], reserves=Reserves(), context_tokens=4096)
    usable = usable_for_stage_count(request.profile, request.demand(), count)
    for cap in (usable.least_bytes, usable.middle_bytes, usable.below_bytes - 1):
        nodes = tuple(make_node(f"n{index}", cap / GB, usable_bytes=cap) for index in range(count))
        result = placed(replace(request, nodes=nodes))
        assert len(result.stages) == count
        if count > 1:
            assert not plan(replace(request, nodes=nodes[1:])).feasible
    short = tuple(replace(node, usable_bytes=usable.least_bytes - 1) for node in nodes)
    assert not plan(replace(request, nodes=short)).feasible


def test_a_cap_that_cannot_force_the_number_is_refused() -> None:
    request = ask([make_node("a", 1)])
    with pytest.raises(LocalPlanRequestError, match="stages"):
        usable_for_stage_count(request.profile, request.demand(), 13)


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 0},
        {"context_tokens": -1},
        {"prefill_chunk_tokens": 0},
        {"objective": "cheapest"},
        {"tolerance": float("nan")},
        {"hop_latency_seconds": -1.0},
        {"link_gb_per_s": 0.0},
        {"excluded_node_ids": frozenset({"nobody"})},
        {"nodes": (make_node("a", 1), make_node("a", 1))},
        {"nodes": (make_node("a", 1, resident_layers=frozenset({99})),)},
    ],
)
def test_contradictory_requests_are_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(LocalPlanRequestError):
        replace(ask([make_node("a", 1)]), **changes)
