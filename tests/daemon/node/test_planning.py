"""The dry run: what a client's wishes become, over the members that live."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from macmesh.reasons import Reason
from macmesh.v1 import cluster_pb2
from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import (
    ClusterDocument,
    Deployment,
    Epoch,
    Member,
    ModelRef,
    NodeFacts,
    Plan,
    Stage,
    WantedModel,
)
from macmesh_daemon.cluster.view import ClusterView
from macmesh_daemon.config import Config
from macmesh_daemon.models import LocalModelNotFoundError
from macmesh_daemon.node.call_errors import CallError
from macmesh_daemon.node.planning import Planning
from macmesh_daemon.weights.library import Library
from macmesh_daemon.weights.store import ModelStore
from macmesh_placement import ModelProfile, Placement, Refusal, TensorShard

from ..cli.conftest import big_profile  # noqa: TID252  the one large profile of the tests

GB = 10**9


class ProfiledPlanning(Planning):
    """Knows one model without reading it."""

    async def profile(self, model_id: str, members: tuple[str, ...]) -> tuple[ModelRef, ModelProfile]:
        del members
        return ModelRef(model_id=model_id), with_heads()


def member(node_id: str, hostname: str) -> Member:
    facts = NodeFacts(
        hostname=hostname,
        host_id="one",
        ram_bytes=512 * GB,
        usable_bytes=96 * GB,
        bandwidth_gb_per_s=500,
        chip="Apple M4 Max",
    )
    return Member(node_id=node_id, facts=facts)


MEMBERS = (member("aaaa1111", "studio"), member("bbbb2222", "mini"), member("cccc3333", "book"))


def view() -> ClusterView:
    return ClusterView(
        node_id="aaaa1111",
        role="coordinator",
        generation=1,
        term=2,
        coordinator_node_id="aaaa1111",
        has_quorum=True,
        document=ClusterDocument(members=(*MEMBERS, member("dddd4444", "gone"))),
        stored_document=None,
        liveness={m.node_id: "alive" for m in MEMBERS},
        heartbeat_ms={},
        workers={},
        promised=None,
        active=None,
        active_plan=None,
        serving_state="idle",
        refusal_json="",
        refusal_reason="",
    )


@pytest.fixture
def planning(tmp_path: Path) -> Planning:
    unused: Any = None
    return ProfiledPlanning(
        config=Config(data_dir=tmp_path),
        node_id="aaaa1111",
        facts=unused,
        peers=unused,
        library=Library(ModelStore(tmp_path / "weights"), tuple, tmp_path),
        hub=unused,
        obstacle=unused,
        provide=unused,
        notify=unused,
    )


async def ask(planning: Planning, **wishes: Any) -> dict[str, Any]:
    request = cluster_pb2.PlanModelRequest(model_id="m", context_tokens=8192, **wishes)
    feasible, text = await planning.dry_run(request, view())
    answer = json.loads(text)
    assert answer["feasible"] is feasible
    assert isinstance(answer, dict)
    return answer


async def test_wishes_reach_the_planner(planning: Planning) -> None:
    answer = await ask(
        planning, excluded_nodes=["studio", "gone"], objective="latency", prefill_chunk_tokens=256
    )
    assert {stage["node_id"] for stage in answer["stages"]} == {"bbbb2222", "cccc3333"}
    assert (answer["objective"], answer["prefill_chunk_tokens"]) == ("latency", 256)
    assert "alternatives" not in answer


async def test_the_chunk_is_the_nodes_setting_where_none_is_asked(planning: Planning, tmp_path: Path) -> None:
    answer = await ask(planning)
    assert answer["prefill_chunk_tokens"] == Config(data_dir=tmp_path).prefill_chunk_tokens


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (
            {"excluded_nodes": ["nobody"]},
            "exclude: there is no node 'nobody'; there are: book, gone, mini, studio",
        ),
        ({"required_nodes": ["gone"]}, "require: 'gone' is known, but may not take part now"),
        ({"head_node": "x"}, "head: there is no node 'x'"),
        ({"kv_bits": 5}, "kv_bits must be 4 or 8, not 5"),
        ({"prefill_share": 1.0}, "prefill_share must be at least 0 and below 1, not 1"),
        ({"prefill_share": float("nan")}, "prefill_share must be"),
        ({"objective": "speed"}, "objective must be one of"),
    ],
)
async def test_a_wrong_wish_is_an_argument_error(
    planning: Planning, wishes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CallError, match=message) as caught:
        await ask(planning, **wishes)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


async def test_alternatives_come_where_asked(planning: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    class Option:
        def to_json(self) -> dict[str, Any]:
            return {"label": "two stages", "reason": "slower", "placement": None, "refusal": None}

    def alternatives(request: object, result: Placement | Refusal) -> tuple[Option, ...]:
        assert request is not None
        assert result.feasible
        return (Option(),)

    stub = ModuleType("macmesh_placement.explain")
    monkeypatch.setattr(stub, "alternatives", alternatives, raising=False)
    monkeypatch.setitem(sys.modules, "macmesh_placement.explain", stub)
    answer = await ask(planning, explain=True)
    assert [option["label"] for option in answer["alternatives"]] == ["two stages"]


def load(**wishes: Any) -> cluster_pb2.LoadModelRequest:
    return cluster_pb2.LoadModelRequest(model_id="m", context_tokens=8192, **wishes)


def with_heads() -> ModelProfile:
    """The large profile, whose caches say what a row is made of."""
    profile = big_profile()
    [piece] = profile.layers[0].caches
    piece = replace(piece, heads=8, key_dim=128, value_dim=128, item_bytes=2)
    return replace(profile, layers=tuple(replace(layer, caches=(piece,)) for layer in profile.layers))


async def computed(
    planning: Planning,
    wanted: WantedModel,
    members: tuple[Member, ...] = MEMBERS,
    current: Plan | None = None,
) -> ev.PlanComputed | ev.PlanRefused:
    heard: list[ev.Event] = []
    planning._notify = heard.append
    await planning.compute(fx.ComputePlan(request_id=7, wanted=wanted, members=members, current=current))
    [event] = heard
    assert isinstance(event, ev.PlanComputed | ev.PlanRefused)
    return event


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_nodes_keep_the_layers_that_they_hold(planning: Planning, lost: int) -> None:
    """All nodes are equal, so which of them takes which layers is decided by what they hold alone."""
    model = ModelRef("m", "", "digest")
    wanted = WantedModel(model, 8192, 1, "balanced", 2)
    count = len(with_heads().layers)
    bounds = (0, count // 3, 2 * count // 3, count)
    for order in (MEMBERS, MEMBERS[::-1]):
        stages = tuple(Stage(i, m.node_id, bounds[i], bounds[i + 1]) for i, m in enumerate(order))
        current = Plan(Epoch(1, 1, 1), (Deployment(model, count, stages=stages, transport="tcp"),), wanted)
        left = tuple(m for m in MEMBERS if m is not order[lost])
        event = await computed(planning, wanted, left, current)
        assert isinstance(event, ev.PlanComputed)
        assert event.deployment is not None
        survivors = [stage.node_id for stage in stages if stage.node_id != order[lost].node_id]
        assert [stage.node_id for stage in event.deployment.stages] == survivors


async def test_a_load_of_quantised_caches_is_planned_with_them(planning: Planning) -> None:
    budgets = []
    for bits in (0, 8):
        event = await computed(planning, await planning.wanted(load(kv_bits=bits), view()))
        assert isinstance(event, ev.PlanComputed)
        assert event.deployment is not None
        assert event.deployment.kv_bits == bits
        stages = event.deployment.stages
        assert all(('"QuantizedKVCache"' in stage.cache_cost_json) == bool(bits) for stage in stages)
        budgets.append(sum(stage.cache_budget_bytes for stage in stages))
    assert budgets[1] < budgets[0]


async def test_transfers_go_from_the_wish_into_the_plan(planning: Planning) -> None:
    with pytest.raises(CallError, match="transfers must be auto, host or graph, not 'quick'"):
        await planning.wanted(load(transfers="quick"), view())
    for asked, kept in (("graph", "graph"), ("auto", ""), ("", "")):
        wanted = await planning.wanted(load(transfers=asked), view())
        assert wanted.transfers == kept
        event = await computed(planning, wanted)
        assert isinstance(event, ev.PlanComputed)
        assert event.deployment is not None
        assert event.deployment.transfers == kept


async def test_caches_that_cannot_be_quantised_are_refused_with_the_reason(
    planning: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def profile(model_id: str, _members: tuple[str, ...]) -> tuple[ModelRef, ModelProfile]:
        return ModelRef(model_id=model_id), replace(with_heads(), kv_bits_problem="it reads them itself")

    with pytest.raises(CallError, match="kv_bits must be 4 or 8, not 2"):
        await planning.wanted(load(kv_bits=2), view())
    wanted = await planning.wanted(load(kv_bits=4), view())
    monkeypatch.setattr(planning, "profile", profile)
    with pytest.raises(CallError, match=r"cannot be of 4 bits: .* it reads them itself") as caught:
        await planning.wanted(load(kv_bits=4), view())
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    # The model may have changed since it was asked for.
    refused = await computed(planning, wanted)
    assert isinstance(refused, ev.PlanRefused)
    assert "it reads them itself" in refused.refusal_json


def with_parts() -> ModelProfile:
    """The large profile with what two nodes hold of every layer."""
    profile = with_heads()
    [piece] = profile.layers[0].caches
    half = replace(piece, bytes_per_token=piece.bytes_per_token // 2)
    layers = tuple(
        replace(
            layer,
            weight_bytes=layer.weight_bytes // 2,
            active_weight_bytes=layer.active_weight_bytes // 2,
            caches=(half,),
        )
        for layer in profile.layers
    )
    shard = TensorShard(
        ways=2,
        layers=layers,
        embedding_bytes=profile.embedding_bytes,
        norm_bytes=profile.norm_bytes,
        head_bytes=profile.head_bytes,
        shared_bytes=profile.shared_bytes,
        reductions_per_step=2,
        reduced_bytes_per_token=2 * profile.hidden_size,
    )
    return replace(profile, tensor_shards=(shard,))


async def test_a_load_may_split_every_layer_over_equal_nodes(
    planning: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def profile(model_id: str, _members: tuple[str, ...]) -> tuple[ModelRef, ModelProfile]:
        return ModelRef(model_id=model_id), with_parts()

    monkeypatch.setattr(planning, "profile", profile)
    wanted = await planning.wanted(load(allow_tensor_parallel=True, objective="latency"), view())
    event = await computed(planning, wanted)
    assert isinstance(event, ev.PlanComputed)
    split = event.deployment
    assert split is not None
    assert (split.parallelism, split.parallelism_reason) == ("tensor", "")
    assert [(s.index, s.first_layer, s.end_layer) for s in split.stages] == [
        (rank, 0, split.layer_count) for rank in range(2)
    ]
    event = await computed(planning, replace(wanted, allow_tensor_parallel=False))
    assert isinstance(event, ev.PlanComputed)
    pipeline = event.deployment
    assert pipeline is not None
    assert (pipeline.parallelism, pipeline.parallelism_reason) == ("pipeline", "")
    # Of the caches each has its part, whole nodes what their layers need.
    slack = with_parts().layers[0].caches[0].array_count * split.layer_count * 16_384
    whole = sum(stage.cache_budget_bytes for stage in pipeline.stages)
    assert 2 * split.stages[0].cache_budget_bytes == whole + slack
    assert split.stages[0].cache_cost_json == split.stages[1].cache_cost_json

    event = await computed(planning, replace(wanted, stage_count=3))
    assert isinstance(event, ev.PlanComputed)
    assert event.deployment is not None
    assert event.deployment.parallelism == "pipeline"
    assert event.deployment.parallelism_reason == "2 ways: 3 stage(s) were asked for"


async def test_a_node_prepares_no_caches_that_it_does_not_have(
    planning: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_matching_folder", lambda _model: None)
    monkeypatch.setattr(planning, "_facts", NodeFacts)
    heard: list[Any] = []
    planning._notify = heard.append
    for bits in (8, 3):
        stage = Stage(node_id="aaaa1111")
        deployment = Deployment(kv_bits=bits, stages=(stage,))
        await planning.check_prepare(fx.CheckPrepare(Plan(Epoch(0, 1, 1), (deployment,)), stage))
    assert [event.ok for event in heard] == [True, False]
    assert heard[1].reason == "this node has no caches of 3 bits, as the plan wants"


@pytest.mark.parametrize("seconds", [0.0, 30.0])
@pytest.mark.parametrize("obstacle", ["", "no other node gives it"])
async def test_a_node_without_the_model_fetches_it_while_another_plan_serves(
    planning: Planning, monkeypatch: pytest.MonkeyPatch, seconds: float, obstacle: str
) -> None:
    def missing(_model: ModelRef) -> None:
        raise LocalModelNotFoundError("not here")

    async def what_stands_in_the_way(_model: ModelRef, _needed_bytes: int) -> str:
        return obstacle

    heard: list[Any] = []

    async def provide(deployment: Deployment, stage_index: int, _told: object) -> Path:
        heard.append((deployment, stage_index))
        return Path("/weights")

    monkeypatch.setattr(planning, "_matching_folder", missing)
    monkeypatch.setattr(planning, "_facts", NodeFacts)
    monkeypatch.setattr(planning, "_obstacle", what_stands_in_the_way)
    monkeypatch.setattr(planning, "_provide", provide)
    planning._notify = heard.append
    stages = (Stage(node_id="bbbb2222"), Stage(index=1, node_id="aaaa1111"))
    deployment = Deployment(stages=stages)
    plan = Plan(Epoch(0, 1, 1), (deployment,))
    await planning.check_prepare(fx.CheckPrepare(plan, stages[1], seconds))

    *fetched, answer = heard
    assert answer.ok is (not obstacle)
    assert fetched == ([(deployment, 1)] if seconds and not obstacle else [])
