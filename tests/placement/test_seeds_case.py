"""Three Macs of 128, 128 and 36 GB and MiniMax-M2.5 at 5 bits, from the committed example files."""

from pathlib import Path

from bench_scripts import load_script
from macmesh_placement import (
    ModelProfile,
    NodeCapacity,
    Placement,
    PlanRequest,
    Refusal,
    cluster_from_json,
    plan,
    stage_ledger,
)

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
CONTEXT = 196_608


def _profile() -> ModelProfile:
    return ModelProfile.from_json_text((EXAMPLES / "minimax-m2.5-5bit.profile.json").read_text())


def _nodes() -> tuple[NodeCapacity, ...]:
    return cluster_from_json((EXAMPLES / "three-macs.cluster.json").read_text()).nodes


def test_the_profile_has_the_known_sizes() -> None:
    profile = _profile()
    assert profile.layer_count == 62
    assert profile.position_limit == CONTEXT
    assert {layer.cache_bytes(CONTEXT) for layer in profile.layers} == {4096 * CONTEXT}
    assert round(profile.total_weight_bytes / 1e9, 2) == 157.24
    assert round(profile.layers[0].weight_bytes / 1e9, 4) == 2.5226
    assert round(profile.embedding_bytes / 1e9, 4) == round(profile.head_bytes / 1e9, 4) == 0.4225
    assert round(62 * 4096 * CONTEXT / 1e9, 2) == 49.93


def test_the_small_mac_gets_at_most_seven_layers_and_every_ledger_closes() -> None:
    result = plan(PlanRequest(profile=_profile(), nodes=_nodes(), context_tokens=CONTEXT))
    assert isinstance(result, Placement), result
    laptop = [stage for stage in result.stages if stage.node_id == "laptop"]
    assert len(laptop) == 1
    assert laptop[0].end_layer - laptop[0].first_layer <= 7
    assert all(stage.ledger.headroom_bytes >= 0 for stage in result.stages)
    assert sum(stage.end_layer - stage.first_layer for stage in result.stages) == 62
    assert result.certificate.exact


def test_eight_layers_would_not_fit_the_small_mac() -> None:
    request = PlanRequest(profile=_profile(), nodes=_nodes(), context_tokens=CONTEXT)
    headroom = {
        count: stage_ledger(
            request.profile,
            request.demand(),
            first_layer=20,
            end_layer=20 + count,
            usable_bytes=27 * 10**9,
            fused_attention=True,
        ).headroom_bytes
        for count in (7, 8)
    }
    assert headroom[7] > 0 > headroom[8]


def test_a_split_by_weights_alone_would_have_failed_below_the_position_limit() -> None:
    request = PlanRequest(profile=_profile(), nodes=_nodes(), context_tokens=CONTEXT)
    page = load_script("placement_page")
    layers = page.weights_only_layers(request)
    assert layers == 8
    laptop = page.node_of(request, "laptop")
    assert layers * request.profile.layers[0].weight_bytes < laptop.usable_bytes
    fails_above = page.largest_closing_context(request, layers)
    assert 150_000 < fails_above < CONTEXT
    assert page.small_ledger(request, layers, fails_above).headroom_bytes >= 0
    assert page.small_ledger(request, layers, fails_above + 1).headroom_bytes < 0
    assert page.largest_closing_context(request, 7) == CONTEXT


def test_two_hundred_thousand_tokens_are_above_the_position_limit() -> None:
    result = plan(PlanRequest(profile=_profile(), nodes=_nodes(), context_tokens=200_000))
    assert isinstance(result, Refusal)
    assert result.kind == "above_position_limit"
    assert result.position_limit == CONTEXT


def test_without_the_small_mac_the_refusal_says_what_would_fit() -> None:
    large = _nodes()[:2]
    result = plan(PlanRequest(profile=_profile(), nodes=large, context_tokens=CONTEXT))
    assert isinstance(result, Refusal)
    assert result.binding == "cache"
    fitting = result.largest_context_tokens
    assert fitting is not None
    assert plan(PlanRequest(profile=_profile(), nodes=large, context_tokens=fitting)).feasible
    assert not plan(PlanRequest(profile=_profile(), nodes=large, context_tokens=fitting + 1)).feasible
