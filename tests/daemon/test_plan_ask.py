"""People's names of nodes, and the request that the planner gets."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from macmesh_daemon.plan_ask import PlanAsk, answer_json, resolve_node
from macmesh_placement import LocalPlanRequestError, ModelProfile, NodeCapacity, PlanRequest, plan

from .cli.conftest import big_profile

KNOWN = {"abc123": ["studio"], "abd456": ["mini"], "fff": ["mini", "book"], "studio": ["x"]}
NODES = tuple(
    NodeCapacity(
        node_id=node_id, name=name, ram_bytes=128 * 10**9, usable_bytes=96 * 10**9, bandwidth_gb_per_s=500
    )
    for node_id, name in (("abc123", "studio"), ("abd456", "mini"), ("fff", "book"))
)


@pytest.mark.parametrize(
    ("name", "node_id"),
    [("abc123", "abc123"), ("abc", "abc123"), ("abd4", "abd456"), ("book", "fff"), ("studio", "studio")],
)
def test_a_node_is_named_by_id_name_or_beginning(name: str, node_id: str) -> None:
    assert resolve_node(name, KNOWN, "exclude") == node_id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ab", "head: 'ab' means several nodes: abc123, abd456"),
        ("mini", "head: 'mini' means several nodes: abd456, fff"),
        ("nobody", "head: there is no node 'nobody'; there are: mini, studio, x"),
        ("", "there is no node ''"),
    ],
)
def test_a_name_that_says_too_little(name: str, message: str) -> None:
    with pytest.raises(LocalPlanRequestError, match=message):
        resolve_node(name, KNOWN, "head")


def test_the_request_has_everything_that_was_asked() -> None:
    request = PlanAsk(
        context_tokens=4096,
        slots=2,
        objective="latency",
        stage_count=2,
        excluded_nodes=("book",),
        required_nodes=("mini", "abc"),
        head_node="studio",
        tail_node="abd456",
        decode_context_tokens=1000,
        prefill_share=0.25,
        prefill_chunk_tokens=512,
        allow_tensor_parallel=True,
    ).request(big_profile(), NODES)
    assert request.profile == big_profile()
    assert request.nodes == NODES
    assert (request.context_tokens, request.slots, request.objective, request.stage_count) == (
        4096,
        2,
        "latency",
        2,
    )
    assert request.excluded_node_ids == {"fff"}
    assert request.required_node_ids == {"abd456", "abc123"}
    assert (request.head_node_id, request.tail_node_id) == ("abc123", "abd456")
    assert (request.decode_context_tokens, request.prefill_share, request.prefill_chunk_tokens) == (
        1000,
        0.25,
        512,
    )
    assert request.allow_tensor_parallel


def test_a_quantised_cache_changes_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_kv_bits(profile: ModelProfile, bits: int) -> ModelProfile:
        return replace(profile, model_id=f"{profile.model_id} at {bits} bits")

    monkeypatch.setattr(ModelProfile, "with_kv_bits", with_kv_bits, raising=False)
    request = PlanAsk(kv_bits=8).request(big_profile(), NODES)
    assert request.profile.model_id == "MiniMax-M2.5-5bit at 8 bits"
    assert PlanAsk().request(big_profile(), NODES).profile == big_profile()


def test_a_known_node_that_may_not_take_part_can_be_excluded_but_not_required() -> None:
    names = {"gone99": ["old-mac"]}
    request = PlanAsk(excluded_nodes=("old-mac",)).request(big_profile(), NODES, names=names)
    assert request.excluded_node_ids == frozenset()
    for ask in (
        PlanAsk(required_nodes=("old-mac",)),
        PlanAsk(head_node="gone"),
        PlanAsk(tail_node="old-mac"),
    ):
        with pytest.raises(LocalPlanRequestError, match="may not take part now"):
            ask.request(big_profile(), NODES, names=names)


def test_the_alternatives_are_in_the_answer_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    request = PlanAsk(context_tokens=4096).request(big_profile(), NODES)
    result = plan(request)
    seen: list[PlanRequest] = []

    def alternatives(asked: PlanRequest, found: object) -> tuple[SimpleNamespace, ...]:
        assert found is result
        seen.append(asked)
        return (SimpleNamespace(to_json=lambda: {"label": "x"}),)

    stub = ModuleType("macmesh_placement.explain")
    monkeypatch.setattr(stub, "alternatives", alternatives, raising=False)
    monkeypatch.setitem(sys.modules, "macmesh_placement.explain", stub)
    assert answer_json(request, result, explain=False) == result.to_json()
    assert answer_json(request, result, explain=True) == {
        **result.to_json(),
        "alternatives": [{"label": "x"}],
    }
    assert seen == [request]
