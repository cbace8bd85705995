"""Between the words of the cluster core and those of the planner."""

from macmesh.reasons import Reason
from macmesh_daemon.cluster.messages import LinkBuffers, Member, ModelRef, NodeFacts
from macmesh_daemon.node.lane_choice import TransportChoice
from macmesh_daemon.node.translation import capacities, deployment_of, reason_of_refusal, reserves
from macmesh_placement import (
    AttentionFacts,
    CachePiece,
    LayerProfile,
    ModelProfile,
    Placement,
    PlanRequest,
    Refusal,
    Reserves,
    Scratch,
    ScratchTerm,
    StageCacheCost,
    all_cut_points,
    plan,
)
from macmesh_rdma.options import LinkOptions

GB = 10**9
LINKS = LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=2)


def _member(node_id: str, host_id: str, usable_gb: float, **facts: object) -> Member:
    values = {
        "hostname": node_id,
        "host_id": host_id,
        "ram_bytes": 64 * GB,
        "usable_bytes": int(usable_gb * GB),
        "bandwidth_gb_per_s": 100.0,
        **facts,
    }
    return Member(node_id=node_id, facts=NodeFacts(**values))  # type: ignore[arg-type]


def _model() -> ModelProfile:
    layer = LayerProfile(
        weight_bytes=GB,
        active_weight_bytes=GB,
        active_parameters=GB // 2,
        parameter_count=9,
        scratch=Scratch(live=(ScratchTerm(0, 1000, 0, 0),)),
        caches=(CachePiece(kind="growing", source="KVCache", bytes_per_token=4096),),
        attention=AttentionFacts(query_heads=8, fused=True, score_bytes=2),
    )
    return ModelProfile(
        model_id="m",
        model_type="qwen3",
        digest="d",
        layers=(layer,) * 8,
        embedding_bytes=GB // 4,
        norm_bytes=1000,
        head_bytes=GB // 4,
        tied=False,
        hidden_size=1024,
        vocab_size=1000,
        activation_bytes=2,
        position_limit=8192,
        cut_points=all_cut_points(8),
    )


def test_members_of_all_machines_are_offered() -> None:
    members = [_member("a", "x", 10), _member("b", "y", 6), _member("c", "y", 6), _member("d", "z", 0)]

    assert [c.node_id for c in capacities(members)] == ["a", "b", "c"]


def test_nodes_of_one_machine_are_charged_shared_memory_and_others_what_a_socket_needs() -> None:
    apart = capacities([_member("a", "x", 10), _member("b", "y", 6)])
    together = capacities([_member("a", "x", 10), _member("b", "y", 6), _member("c", "y", 6)])

    assert reserves(5, LINKS, apart) == Reserves(runtime_reserve_bytes=5, transport_pool_bytes=2 * 16384)
    assert reserves(5, LINKS, together).transport_pool_bytes == 2 * LINKS.shm_bytes
    assert LinkOptions().shm_bytes == 33_079_296


def test_members_without_facts_or_memory_are_left_out() -> None:
    assert capacities([Member(node_id="a"), _member("b", "x", 0)]) == ()


def test_the_published_bandwidth_stands_in_for_a_failed_probe() -> None:
    [node] = capacities([_member("a", "x", 1, bandwidth_gb_per_s=0.0, table_bandwidth_gb_per_s=546.0)])

    assert node.bandwidth_gb_per_s == 546.0


def test_fused_attention_is_apples() -> None:
    chips = {"Apple M4 Max": True, "AMD EPYC": False, "": False}

    for chip, fused in chips.items():
        [node] = capacities([_member("a", "x", 1, chip=chip)])
        assert node.fused_attention is fused


def test_a_placement_becomes_a_deployment_with_its_ledgers() -> None:
    nodes = capacities([_member("a", "x", 6), _member("b", "x", 6)])
    result = plan(
        PlanRequest(
            profile=_model(), nodes=nodes, context_tokens=4096, reserves=reserves(10**6, LINKS, nodes)
        )
    )
    assert isinstance(result, Placement), result
    deployment = deployment_of(
        result, _model(), ModelRef("m", "/m", "d"), LINKS, TransportChoice("auto", "why")
    )

    assert [(s.first_layer, s.end_layer) for s in deployment.stages] == [
        (s.first_layer, s.end_layer) for s in result.stages
    ]
    assert deployment.transport == "auto"
    assert deployment.link_buffers == LinkBuffers(
        num_buffers=2, frame_bytes=4096, buffer_sizes=2, max_outstanding=256, spin_us=100.0, sockets=1
    )
    for stage in deployment.stages:
        assert stage.ledger is not None
        needed = sum(e.size_bytes for e in stage.ledger.entries)
        assert stage.ledger.headroom_bytes == stage.ledger.usable_bytes - needed >= 0
        cost = StageCacheCost.from_json_text(stage.cache_cost_json)
        lines = {entry.name: entry.size_bytes for entry in stage.ledger.entries}
        assert cost.reserved_bytes(4096) == lines["cache"] == (stage.end_layer - stage.first_layer) * 4096**2
        assert stage.cache_budget_bytes == lines["cache"] + cost.slack_bytes


def test_a_single_stage_has_no_transport() -> None:
    [node] = capacities([_member("a", "x", 20)])
    result = plan(PlanRequest(profile=_model(), nodes=(node,), context_tokens=4096))
    assert isinstance(result, Placement), result

    assert deployment_of(result, _model(), ModelRef(), LINKS, TransportChoice("none")).transport == "none"


def test_every_refusal_has_a_reason() -> None:
    kinds = ("does_not_fit", "above_position_limit", "needs_context", "stage_count", "no_nodes", "pins")

    for kind in (*kinds, "unsupported_architecture"):
        assert isinstance(reason_of_refusal(Refusal(kind=kind, message="")), Reason)  # type: ignore[arg-type]
