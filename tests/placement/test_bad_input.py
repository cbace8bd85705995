"""What callers and files can get wrong: a clear error that names the field, never a crash or a wrong answer."""

import copy
import json
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_placement import (
    AttentionFacts,
    CachePiece,
    LayerProfile,
    Link,
    LocalClusterError,
    LocalPlacementError,
    LocalPlanRequestError,
    LocalProfileError,
    ModelProfile,
    NodeCapacity,
    Placement,
    PlacementError,
    PlanRequest,
    Refusal,
    Reserves,
    Scratch,
    ScratchTerm,
    all_cut_points,
    cluster_from_json,
    plan,
    result_from_json,
)
from macmesh_placement.readd import readd
from placement import drawn
from placement.test_planner import ask, make_model, make_node

SEEDS = st.integers(0, 2**48)
TOO_LARGE = [pytest.param(2**power + 1, id=f"2^{power}") for power in (56, 63, 1300, 17_000)]


@pytest.mark.parametrize("size", TOO_LARGE)
@pytest.mark.parametrize("name", ["ram_bytes", "usable_bytes"])
def test_sizes_of_nodes_beyond_any_machine_are_refused(name: str, size: int) -> None:
    with pytest.raises(LocalClusterError, match=name):
        make_node("a", 1, **{name: size})


@pytest.mark.parametrize("size", [*TOO_LARGE, -1, 1.5, "1", None, True, float("nan")])
@pytest.mark.parametrize("name", ["embedding_bytes", "norm_bytes", "vocab_size", "hidden_size"])
def test_impossible_sizes_of_profiles_are_refused(name: str, size: Any) -> None:
    with pytest.raises(LocalProfileError, match=name):
        make_model(2, **{name: size})


@pytest.mark.parametrize("size", TOO_LARGE)
def test_impossible_sizes_of_layers_are_refused(size: int) -> None:
    layer = make_model(1).layers[0]
    for name in ("weight_bytes", "active_weight_bytes", "active_parameters"):
        fields: dict[str, Any] = {name: size}
        with pytest.raises(LocalProfileError, match=name):
            replace(layer, **fields)
    with pytest.raises(LocalProfileError, match="bytes_per_token"):
        replace(layer.caches[0], bytes_per_token=size)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e308, 5e-324, "9", None, True, 10**400])
@pytest.mark.parametrize("name", ["bandwidth_gb_per_s", "flops_tflops"])
def test_impossible_rates_are_refused(name: str, value: Any) -> None:
    if name == "flops_tflops" and value is None:
        return
    with pytest.raises(LocalClusterError, match=name):
        make_node("a", 1, **{name: value})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"node_id": ""}, "node_id"),
        ({"node_id": 7}, "node_id"),
        ({"host_id": None}, "host_id"),
        ({"fused_attention": "yes"}, "fused_attention"),
        ({"resident_layers": frozenset({"1"})}, "resident_layers"),
        ({"resident_layers": frozenset({-1})}, "resident_layers"),
    ],
)
def test_nodes_of_wrong_types_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(LocalClusterError, match=named):
        replace(make_node("a", 1), **changes)


LINK = Link(node_ids=("a", "b"), kind="tcp", latency_seconds=0.001, gb_per_s=1.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"context_tokens": -1}, "context_tokens"),
        ({"context_tokens": 2**63}, "context_tokens"),
        ({"context_tokens": 1.0}, "context_tokens"),
        ({"slots": 0}, "slots"),
        ({"slots": 2**60}, "slots"),
        ({"prefill_chunk_tokens": 0}, "prefill_chunk_tokens"),
        ({"stage_count": -2}, "stage_count"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"hop_latency_seconds": 1e300}, "hop_latency_seconds"),
        ({"link_gb_per_s": 1e-300}, "link_gb_per_s"),
        ({"prefill_share": 1.0}, "prefill_share"),
        ({"prefill_share": -0.1}, "prefill_share"),
        ({"decode_context_tokens": 4096}, "decode_context_tokens"),
        ({"objective": "cheapest"}, "objective"),
        ({"nodes": (make_node("a", 1),) * 2}, "twice"),
        ({"links": (replace(LINK, node_ids=("a", "z")),)}, "z"),
        ({"links": (LINK, LINK)}, "links"),
        ({"required_node_ids": frozenset({"z"})}, "required_node_ids"),
        ({"head_node_id": "z"}, "head_node_id"),
        ({"tail_node_id": "z"}, "tail_node_id"),
        ({"excluded_node_ids": frozenset({"a"}), "head_node_id": "a"}, "head_node_id"),
        ({"excluded_node_ids": frozenset({"a"}), "required_node_ids": frozenset({"a"})}, "required_node_ids"),
        ({"head_node_id": "a", "tail_node_id": "a", "stage_count": 2}, "stage_count"),
        ({"head_node_id": "a", "tail_node_id": "b", "stage_count": 1}, "stage_count"),
        ({"required_node_ids": frozenset({"a", "b"}), "stage_count": 1}, "stage_count"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises((LocalPlanRequestError, LocalClusterError), match=named):
        replace(ask([make_node("a", 20), make_node("b", 20)]), **changes)


@pytest.mark.parametrize("node_ids", [("a", "a"), ("a",), ("a", "b", "c")])
def test_links_that_do_not_join_two_nodes_are_refused(node_ids: Any) -> None:
    with pytest.raises(LocalClusterError, match="link"):
        replace(LINK, node_ids=node_ids)


def test_what_would_leave_64_bits_is_an_error_and_never_wraps() -> None:
    huge = make_model(12, position_limit=2**50)
    request = ask([make_node("a", 20)], profile=huge, context_tokens=2**50)
    with pytest.raises(LocalPlanRequestError, match="context_tokens"):
        plan(request)
    with pytest.raises(LocalPlanRequestError, match="slots"):
        plan(ask([make_node("a", 20)], slots=2**50))
    with pytest.raises(LocalPlanRequestError, match="reserves"):
        Reserves(runtime_reserve_bytes=2**57)


def test_more_nodes_and_cuts_than_tables_can_hold_are_an_error() -> None:
    long = make_model(3000)
    nodes = [make_node(f"n{index}", 1) for index in range(20)]
    with pytest.raises(LocalPlanRequestError, match="cut_points"):
        plan(ask(nodes, profile=long))


def test_a_profile_without_layers_is_refused() -> None:
    with pytest.raises(LocalProfileError, match="layers"):
        make_model(1, layers=())


def test_a_profile_of_absurdly_many_layers_is_refused() -> None:
    value = make_model(2).to_json()
    value["layers"][0]["count"] = 2**40
    with pytest.raises(LocalProfileError, match="count"):
        ModelProfile.from_json(value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "1" * 10_000,
        '{"format": "macmesh-profile/1", "layers": ' + "9" * 5000 + "}",
        '{"format": 1e999}',
        "\ud800",
        "\x00",
    ],
)
def test_hostile_json_is_a_clear_error(text: str) -> None:
    with pytest.raises(LocalProfileError):
        ModelProfile.from_json_text(text)
    with pytest.raises(LocalClusterError):
        cluster_from_json(text)
    with pytest.raises(LocalPlacementError):
        result_from_json(text)


_WRONG: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**31, 2**55, 2**56 + 1, 2**63, -(2**63), 10**30, 1e308, 0.5, 1e-300, 3.0])
    | st.text(max_size=3)
    | st.builds(list)
    | st.builds(dict)
    | st.builds(lambda: [{}])
)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _paths(item, (*at, key))
    return found


def _mutated(value: Any, data: st.DataObject) -> Any:
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        paths = _paths(value)
        if not paths:
            break
        path = data.draw(st.sampled_from(paths))
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()):
            del holder[path[-1]]
        else:
            holder[path[-1]] = data.draw(_WRONG)
    return value


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.data())
def test_a_damaged_profile_reads_as_what_it_says_or_not_at_all(seed: int, data: st.DataObject) -> None:
    good = drawn.profile(Random(seed))  # noqa: S311  drawn cases, no secrets
    value = _mutated(good.to_json(), data)
    try:
        profile = ModelProfile.from_json_text(json.dumps(value))
    except LocalProfileError as problem:
        assert str(problem)  # noqa: PT017  either outcome is right
        return
    assert ModelProfile.from_json_text(profile.to_json_text()) == profile
    request = PlanRequest(profile=profile, nodes=(make_node("a", 1), make_node("b", 1)), context_tokens=64)
    _assert_answered(request)


def _cluster(seed: int) -> dict[str, Any]:
    nodes = drawn.request(seed).nodes
    names = ("node_id", "host_id", "ram_bytes", "usable_bytes", "bandwidth_gb_per_s", "flops_tflops")
    written = [{"name": node.node_id, **{name: getattr(node, name) for name in names}} for node in nodes]
    links: list[dict[str, Any]] = [
        {"nodes": [left.node_id, right.node_id], "kind": "tcp", "latency_ms": 0.2, "gb_per_s": 1.25}
        for left, right in pairwise(nodes)
    ]
    return {"format": "macmesh-cluster/1", "nodes": written, "links": links}


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.data())
def test_a_damaged_cluster_reads_as_what_it_says_or_not_at_all(seed: int, data: st.DataObject) -> None:
    value = _mutated(_cluster(seed), data)
    try:
        cluster = cluster_from_json(json.dumps(value))
    except LocalClusterError as problem:
        assert str(problem)  # noqa: PT017  either outcome is right
        return
    nodes = value["nodes"] if isinstance(value, dict) else value
    assert [node.ram_bytes for node in cluster.nodes] == [item["ram_bytes"] for item in nodes]
    _assert_answered(ask(list(cluster.nodes), links=cluster.links))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.data())
def test_a_damaged_result_reads_whole_or_not_at_all(seed: int, data: st.DataObject) -> None:
    value = _mutated(plan(drawn.request(seed)).to_json(), data)
    try:
        result = result_from_json(json.dumps(value))
    except LocalPlacementError as problem:
        assert str(problem)  # noqa: PT017  either outcome is right
        return
    assert result_from_json(json.dumps(result.to_json())) == result


def _assert_answered(request: PlanRequest) -> None:
    """The planner answers, and what it answers is sound; or the request is an error."""
    try:
        result = plan(request)
    except PlacementError as problem:
        assert str(problem)  # noqa: PT017  either outcome is right
        return
    if isinstance(result, Placement):
        readd(result, request)
    else:
        assert isinstance(result, Refusal)
        assert result.message
    assert result_from_json(json.dumps(result.to_json())) == result


SIZES = st.integers(0, 3) | st.integers(0, 10**6) | st.sampled_from([2**40, 2**53, 2**55, 2**56, 2**56 + 1])
COUNTS = st.integers(0, 4) | st.sampled_from([255, 256, 2**20, 2**56])
RATES = st.sampled_from([0.0, 1e-30, 1e-12, 0.5, 400.0, 1e15, 1e30, 1e31])


@st.composite
def _requests(draw: st.DrawFn) -> PlanRequest:
    """Requests of any numbers at all; many are refused while they are made."""
    layers = tuple(
        LayerProfile(
            weight_bytes=(weight := draw(SIZES)),
            active_weight_bytes=draw(st.sampled_from([0, weight // 2, weight])),
            active_parameters=draw(SIZES),
            parameter_count=draw(COUNTS),
            scratch=Scratch(live=(ScratchTerm(draw(SIZES), draw(SIZES), 0, 0),)),
            caches=tuple(
                CachePiece(
                    kind="growing", source="KVCache", bytes_per_token=draw(SIZES), array_count=draw(COUNTS)
                )
                for _ in range(draw(st.integers(0, 2)))
            ),
            attention=draw(
                st.none()
                | st.builds(AttentionFacts, query_heads=COUNTS, fused=st.booleans(), score_bytes=COUNTS)
            ),
        )
        for _ in range(draw(st.integers(1, 4)))
    )
    profile = ModelProfile(
        model_id="m",
        model_type="fuzz",
        digest="",
        layers=layers,
        embedding_bytes=draw(SIZES),
        norm_bytes=draw(SIZES),
        head_bytes=0,
        tied=draw(st.booleans()),
        hidden_size=draw(SIZES.filter(bool)),
        vocab_size=draw(SIZES.filter(bool)),
        activation_bytes=draw(st.integers(1, 4)),
        position_limit=draw(st.none() | COUNTS.filter(bool)),
        cut_points=draw(st.sampled_from([(), all_cut_points(len(layers))])),
    )
    names = [f"n{index}" for index in range(draw(st.integers(0, 4)))]
    nodes = tuple(
        NodeCapacity(
            node_id=name,
            ram_bytes=draw(SIZES.filter(bool)),
            usable_bytes=draw(SIZES),
            bandwidth_gb_per_s=draw(RATES),
            flops_tflops=draw(st.none() | RATES),
            host_id=draw(st.sampled_from(["", "shared"])),
            fused_attention=draw(st.booleans()),
        )
        for name in names
    )
    someone = st.sampled_from([*names, "nobody"])
    return PlanRequest(
        profile=profile,
        nodes=nodes,
        context_tokens=draw(COUNTS),
        slots=draw(COUNTS),
        prefill_chunk_tokens=draw(COUNTS),
        objective=draw(st.sampled_from(["latency", "throughput", "balanced"])),
        stage_count=draw(st.integers(0, 3)),
        excluded_node_ids=draw(st.frozensets(someone, max_size=1)),
        required_node_ids=draw(st.frozensets(someone, max_size=1)),
        head_node_id=draw(st.just("") | someone),
        tail_node_id=draw(st.just("") | someone),
        prefill_share=draw(st.sampled_from([0.0, 0.5, 1.0])),
        decode_context_tokens=draw(st.sampled_from([0, 1, 300])),
        hop_latency_seconds=draw(RATES),
        link_gb_per_s=draw(RATES),
        tolerance=draw(RATES),
        reserves=draw(st.sampled_from([Reserves(), drawn.SMALL_RESERVES])),
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_arbitrary_requests_are_answered_or_refused_as_errors(data: st.DataObject) -> None:
    try:
        request = data.draw(_requests())
    except PlacementError as problem:
        assert str(problem)  # noqa: PT017  either outcome is right
        return
    _assert_answered(request)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.data())
def test_drawn_requests_at_odd_numbers_are_answered(seed: int, data: st.DataObject) -> None:
    request = drawn.request(seed)
    try:
        changed = replace(
            request,
            context_tokens=data.draw(COUNTS),
            slots=data.draw(COUNTS),
            prefill_chunk_tokens=data.draw(COUNTS),
            tolerance=data.draw(RATES),
            hop_latency_seconds=data.draw(RATES),
            link_gb_per_s=data.draw(RATES),
        )
    except PlacementError:
        return
    _assert_answered(changed)
