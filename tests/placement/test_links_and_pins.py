"""Links, pins, the current plan and tensor parallelism, as the planner treats them."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_placement import (
    Link,
    LinkKind,
    LocalClusterError,
    LocalPlanRequestError,
    NodeCapacity,
    Placement,
    PlanRequest,
    TensorShard,
    cluster_from_json,
    plan,
    readd,
    result_from_json,
)
from macmesh_placement.links import LINK_DEFAULTS
from macmesh_placement.problem import Problem
from macmesh_placement.tensor_reason import why_no_tensor
from placement import drawn
from placement.test_planner import GB, NO_RESERVES, ask, make_model, make_node, placed, ranges, refused

RDMA, TCP = 0.00005, 0.0003


def link(left: str, right: str, kind: LinkKind = "rdma", latency: float = RDMA) -> Link:
    return Link(node_ids=(left, right), kind=kind, latency_seconds=latency, gb_per_s=6.0)


def ring(names: str) -> tuple[Link, ...]:
    return tuple(link(left, right) for left, right in zip(names, names[1:] + names[:1], strict=True))


def order(placement: Placement) -> str:
    return "".join(node for node, _, _ in ranges(placement))


def test_stages_follow_the_ring_of_cables_and_not_the_order_of_the_request() -> None:
    nodes = [make_node(name, 3.8) for name in "acbd"]
    result = placed(ask(nodes, links=ring("abcd"), objective="latency"))
    assert order(result) in {"abcd", "bcda", "cdab", "dabc", "dcba", "cbad", "badc", "adcb"}
    assert result.certificate.exact
    assert sum(stage.hop_seconds for stage in result.stages) == pytest.approx(4 * RDMA, rel=0.01)


def test_a_ring_of_rdma_beats_a_mixed_one_before_the_fewest_bytes() -> None:
    current = {"a": range(6), "x": range(6, 12)}
    nodes = [
        make_node(name, 6.8, resident_layers=frozenset(current.get(name, ())), holds_embedding=name == "a")
        for name in "axb"
    ]
    links = (link("a", "b"), link("a", "x", "tcp", TCP))
    result = placed(ask(nodes, links=links, tolerance=0.1))
    assert set(order(result)) == {"a", "b"}
    assert all(stage.hop_seconds < TCP for stage in result.stages)
    unlinked = placed(ask(nodes, tolerance=0.1))
    assert set(order(unlinked)) == {"a", "x"}
    far_off = placed(ask(nodes, links=(link("a", "b", latency=1.0), links[1]), tolerance=0.1))
    assert set(order(far_off)) == {"a", "x"}


def test_the_way_back_is_a_hop_too() -> None:
    line = (link("a", "b"), link("b", "c"))
    nodes = [make_node(name, 5) for name in "abc"]
    result = placed(ask(nodes, links=line, objective="latency", hop_latency_seconds=1.0))
    assert result.stages[-1].hop_seconds == pytest.approx(1.0, rel=1e-6)
    assert result.predicted_decode_seconds > 1.0


def test_thirty_nodes_in_shuffled_order_are_walked_along_their_cables() -> None:
    names = [f"n{(7 * index) % 30:02}" for index in range(30)]
    cables = tuple(link(f"n{index:02}", f"n{index + 1:02}") for index in range(29))
    nodes = [make_node(name, 1.6) for name in names]
    model = make_model(20)
    result = placed(ask(nodes, profile=model, links=cables, objective="latency", stage_count=0))
    used = [int(node[1:]) for node, _, _ in ranges(result)]
    steps = [abs(right - left) for left, right in pairwise(used)]
    assert steps.count(1) >= len(steps) - 1
    assert not result.certificate.exact
    assert "links" in result.certificate.method


def test_pins_hold_on_more_than_twelve_nodes() -> None:
    nodes = [make_node(f"n{index:02}", 3) for index in range(14)]
    pins = {"head_node_id": "n09", "tail_node_id": "n02", "required_node_ids": frozenset({"n05", "n11"})}
    for count in (0, 6):
        used = [node for node, _, _ in ranges(placed(ask(nodes, stage_count=count, **pins)))]
        assert used[0] == "n09"
        assert used[-1] == "n02"
        assert {"n05", "n11"} <= set(used)


def test_a_pinned_node_takes_part_although_one_node_would_do() -> None:
    nodes = [make_node(name, 20) for name in "abc"]
    assert len(placed(ask(nodes)).stages) == 1
    assert order(placed(ask(nodes, required_node_ids=frozenset("c"), tail_node_id="b")))[-1] == "b"
    assert order(placed(ask(nodes, head_node_id="c", tail_node_id="c"))) == "c"
    assert order(placed(ask(nodes, head_node_id="b", required_node_ids=frozenset("ac"))))[0] == "b"


def test_a_refusal_for_the_pins_alone_can_be_told() -> None:
    nodes = [make_node("a", 20), make_node("tiny", 0.1)]
    request = ask(nodes, required_node_ids=frozenset({"tiny"}))
    refused(request)
    assert not Problem(request, request.nodes, 1024).feasible()
    assert Problem(request.without_pins(), request.nodes, 1024).feasible()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"links": (link("a", "z"),)}, "links joins 'a' and 'z'"),
        ({"links": (link("a", "b"), link("b", "a", "tcp"))}, "twice"),
        ({"required_node_ids": frozenset("z")}, "required_node_ids names unknown"),
        ({"head_node_id": "z"}, "head_node_id names unknown"),
        ({"tail_node_id": "z"}, "tail_node_id names unknown"),
        ({"required_node_ids": frozenset("a"), "excluded_node_ids": frozenset("a")}, "required_node_ids and"),
        ({"head_node_id": "a", "excluded_node_ids": frozenset("a")}, "head_node_id and excluded"),
        ({"head_node_id": "a", "tail_node_id": "a", "stage_count": 2}, "stage_count is 2"),
        (
            {"head_node_id": "a", "tail_node_id": "a", "required_node_ids": frozenset("b")},
            "required_node_ids",
        ),
        ({"required_node_ids": frozenset("abc"), "stage_count": 2}, "stage_count 2"),
        ({"head_node_id": "a", "tail_node_id": "b", "stage_count": 1}, "stage_count 1"),
        ({"decode_context_tokens": 1025}, "decode_context_tokens"),
        ({"decode_context_tokens": -1}, "decode_context_tokens"),
        ({"prefill_share": 1.0}, "prefill_share"),
        ({"prefill_share": -0.1}, "prefill_share"),
        ({"prefill_share": float("nan")}, "prefill_share"),
        ({"hop_latency_seconds": float("nan")}, "hop_latency_seconds"),
        ({"link_gb_per_s": float("nan")}, "link_gb_per_s"),
    ],
)
def test_contradictions_name_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(LocalPlanRequestError, match=named):
        ask([make_node(name, 20) for name in "abc"], **changes)


NODES = [{"name": n, "ram_bytes": 9, "usable_bytes": 7, "bandwidth_gb_per_s": 400} for n in "ab"]


def cluster_text(*links: object) -> str:
    return json.dumps({"nodes": NODES, "links": list(links)})


def test_a_cluster_file_gives_its_links_with_defaults_by_kind() -> None:
    text = cluster_text({"nodes": ["a", "b"], "kind": "rdma", "latency_ms": 0.1, "gb_per_s": 9})
    assert cluster_from_json(text).links == (
        Link(node_ids=("a", "b"), kind="rdma", latency_seconds=0.0001, gb_per_s=9.0),
    )
    for kind, (latency_ms, gb_per_s) in LINK_DEFAULTS.items():
        found = cluster_from_json(cluster_text({"nodes": ["a", "b"], "kind": kind})).links[0]
        assert (found.latency_seconds, found.gb_per_s) == (latency_ms / 1000, gb_per_s)


@pytest.mark.parametrize(
    ("links", "named"),
    [
        ([{"nodes": ["a", "c"], "kind": "tcp"}], "c is no known node"),
        ([{"nodes": ["a", "b"], "kind": "tcp"}, {"nodes": ["b", "a"], "kind": "rdma"}], "twice"),
        ([{"nodes": ["a", "a"], "kind": "tcp"}], "to itself"),
        ([{"nodes": ["a"], "kind": "tcp"}], r"links\[0\].nodes"),
        ([{"nodes": ["a", "b"], "kind": "wifi"}], r"links\[0\].kind"),
        ([{"nodes": ["a", "b"]}], "kind"),
        ([{"nodes": ["a", "b"], "kind": "tcp", "gb_per_s": 0}], "gb_per_s"),
        ([{"nodes": ["a", "b"], "kind": "tcp", "speed": 1}], "speed"),
        (["ab"], r"links\[0\]"),
    ],
)
def test_bad_links_of_a_cluster_file_are_refused_with_the_field(links: list[object], named: str) -> None:
    with pytest.raises(LocalClusterError, match=named):
        cluster_from_json(cluster_text(*links))


def holding(request: PlanRequest, result: Placement) -> PlanRequest:
    """The same ask once the plan runs: every node holds what its stage has."""
    stages = {stage.node_id: stage for stage in result.stages}
    last = result.stages[-1].index
    nodes = []
    for node in request.nodes:
        stage = stages.get(node.node_id)
        tensor = result.parallelism == "tensor"
        nodes.append(
            replace(
                node,
                resident_layers=frozenset(range(stage.first_layer, stage.end_layer) if stage else ()),
                resident_ways=len(result.stages) if tensor and stage else 1,
                holds_embedding=stage is not None and (tensor or stage.index == 0),
                holds_head=stage is not None and (tensor or stage.index == last),
            )
        )
    return replace(request, nodes=tuple(nodes))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**48))
def test_an_unchanged_ask_keeps_its_plan_and_loads_nothing(seed: int) -> None:
    request = drawn.request(seed)
    first = plan(request)
    if not isinstance(first, Placement):
        return
    again = placed(holding(request, first))
    assert ranges(again) == ranges(first)
    assert again.bytes_to_load == 0
    assert again.certificate.fewest_bytes_proved


def test_prompts_pull_layers_to_compute_and_decoding_to_bandwidth() -> None:
    wide = make_node("wide", 30, bandwidth_gb_per_s=800.0, flops_tflops=5.0)
    quick = make_node("quick", 30, bandwidth_gb_per_s=200.0, flops_tflops=50.0)
    layers = make_model().layers
    model = make_model(layers=tuple(replace(layer, active_parameters=10**9) for layer in layers))
    decoding = placed(ask([wide, quick], profile=model, objective="latency"))
    prompts = placed(ask([wide, quick], profile=model, objective="latency", prefill_share=0.99))
    assert order(decoding) == "wide"
    assert order(prompts) == "quick"
    assert prompts.predicted_prefill_seconds_per_token < decoding.predicted_prefill_seconds_per_token
    assert prompts.predicted_decode_seconds > decoding.predicted_decode_seconds


def test_the_decode_context_shortens_the_predicted_token_only() -> None:
    full = placed(ask([make_node("a", 30)], context_tokens=32_768))
    short = placed(ask([make_node("a", 30)], context_tokens=32_768, decode_context_tokens=1))
    assert short.predicted_decode_seconds < full.predicted_decode_seconds
    assert short.stages[0].ledger == full.stages[0].ledger


def sharded(ways: int = 2) -> Any:
    model = make_model()
    shard = TensorShard(
        ways=ways,
        layers=tuple(
            replace(layer, weight_bytes=GB // ways, active_weight_bytes=GB // ways) for layer in model.layers
        ),
        embedding_bytes=model.embedding_bytes,
        norm_bytes=model.norm_bytes,
        head_bytes=model.head_bytes,
        shared_bytes=0,
        reductions_per_step=24,
        reduced_bytes_per_token=24 * 128,
    )
    return replace(model, tensor_shards=(shard,))


def split(nodes: list[NodeCapacity], **changes: Any) -> PlanRequest:
    return ask(nodes, profile=sharded(), allow_tensor_parallel=True, objective="latency", **changes)


def test_equal_nodes_share_every_layer_where_that_is_faster() -> None:
    nodes = [make_node(name, 9) for name in "ab"]
    result = placed(split(nodes, hop_latency_seconds=0.00002))
    assert result.parallelism == "tensor"
    assert ranges(result) == [("a", 0, 12), ("b", 0, 12)]
    pipeline = placed(ask(nodes, profile=sharded(), objective="latency", hop_latency_seconds=0.00002))
    assert pipeline.parallelism == "pipeline"
    assert result.predicted_decode_seconds < 0.6 * pipeline.predicted_decode_seconds
    seconds = [stage.predicted_seconds + stage.hop_seconds for stage in result.stages]
    assert max(seconds) == pytest.approx(result.certificate.objective_seconds)
    assert result.stages[0].hop_seconds == pytest.approx(24 * 2 * 0.00002, rel=0.01)
    assert result_from_json(json.dumps(result.to_json())) == result
    assert placed(holding(split(nodes, hop_latency_seconds=0.00002), result)).bytes_to_load == 0


def test_slow_links_or_unequal_nodes_or_too_little_memory_leave_the_pipeline() -> None:
    equal = [make_node(name, 9) for name in "ab"]
    assert placed(split(equal, hop_latency_seconds=0.005)).parallelism == "pipeline"
    uneven = [make_node("a", 9), make_node("b", 9, bandwidth_gb_per_s=300.0)]
    assert placed(split(uneven, hop_latency_seconds=0.0)).parallelism == "pipeline"
    small = [make_node("a", 10), make_node("b", 5)]
    assert placed(split(small, hop_latency_seconds=0.0)).parallelism == "pipeline"
    single = [*equal, make_node("c", 20)]
    assert placed(split(single, hop_latency_seconds=0.0, stage_count=1)).parallelism == "pipeline"
    mixed = [*equal, make_node("c", 9)]
    links = (link("a", "b"), link("b", "c", "tcp", TCP), link("a", "c", "tcp", TCP))
    assert order(placed(split(mixed, links=links))) == "ab"


def test_a_shard_charges_transport_and_sampling_on_every_node() -> None:
    reserves = replace(NO_RESERVES, transport_pool_bytes=1234)
    result = placed(split([make_node(n, 9) for n in "ab"], hop_latency_seconds=0.0, reserves=reserves))
    for stage in result.stages:
        assert stage.ledger.size_of("transport_pool") == 1234
        assert stage.ledger.size_of("sampling") > 0
        assert stage.ledger.size_of("weights") == 6 * GB
        assert stage.ledger.headroom_bytes >= 0


def test_more_than_three_ranks_are_charged_for_all_their_peers() -> None:
    reserves = replace(NO_RESERVES, transport_pool_bytes=1001)
    request = ask(
        [make_node(n, 9) for n in "abcd"],
        profile=sharded(4),
        allow_tensor_parallel=True,
        stage_count=4,
        objective="latency",
        hop_latency_seconds=0.0,
        reserves=reserves,
    )
    result = placed(request)
    assert result.parallelism == "tensor"
    assert {stage.ledger.size_of("transport_pool") for stage in result.stages} == {1502}
    readd(result, request)


@pytest.mark.parametrize(
    ("nodes", "changes", "reason"),
    [
        ([("a", 9, 800.0), ("b", 9, 800.0)], {"hop_latency_seconds": 0.005}, "2 ways: predicted "),
        ([("a", 9, 800.0), ("b", 9, 300.0)], {}, "no 2 nodes are equal in speed within 5 %"),
        ([("a", 10, 800.0), ("b", 5, 800.0)], {}, "a part fits on 1 node(s) only"),
        ([("a", 20, 800.0), ("b", 20, 800.0)], {"stage_count": 1}, "1 stage(s) were asked for"),
        ([("a", 20, 800.0)], {}, "1 node(s) may take part"),
    ],
)
def test_why_layers_are_not_split_is_told(
    nodes: list[tuple[str, float, float]], changes: dict[str, Any], reason: str
) -> None:
    made = [make_node(name, size, bandwidth_gb_per_s=speed) for name, size, speed in nodes]
    request = split(made, **{"hop_latency_seconds": 0.0, **changes})
    result = placed(request)
    assert result.parallelism == "pipeline"
    assert reason in why_no_tensor(request, result)
    silent = replace(request, allow_tensor_parallel=False)
    assert why_no_tensor(silent, placed(silent)) == ""
    none = replace(request, profile=make_model())
    assert "mlx-lm cannot split" in why_no_tensor(none, placed(none))


def test_a_split_needs_no_reason() -> None:
    request = split([make_node(name, 9) for name in "ab"], hop_latency_seconds=0.00002)
    assert why_no_tensor(request, placed(request)) == ""


def test_a_model_that_cannot_be_cut_is_split_over_nodes_that_cannot_hold_it_whole() -> None:
    whole = replace(sharded(), cut_points=(), cut_reason="its layers are called twice")
    request = ask([make_node(n, 9) for n in "ab"], profile=whole, allow_tensor_parallel=True)
    result = placed(request)
    assert result.parallelism == "tensor"
    readd(result, request)
    assert refused(replace(request, allow_tensor_parallel=False))
