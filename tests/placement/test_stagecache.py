"""What the head counts at serving time against what the ledger charges."""

import pytest

from macmesh_placement import LocalProfileError, Placement, cache_budget_bytes, plan, stage_cache_cost
from macmesh_placement.ledger import PAGE_BYTES
from macmesh_placement.stagecache import StageCacheCost
from placement import drawn


@pytest.mark.parametrize("seed", range(60))
def test_the_budget_is_what_the_ledger_holds_for_caches(seed: int) -> None:
    request = drawn.request(seed)
    placement = plan(request)
    if not isinstance(placement, Placement):
        pytest.skip("does not fit")
    arrays = 0
    for stage in placement.stages:
        cost = stage_cache_cost(request.profile, stage.first_layer, stage.end_layer)
        budget_bytes = cache_budget_bytes(
            cost,
            context_tokens=placement.context_tokens,
            slots=placement.slots,
            prefill_chunk_tokens=placement.prefill_chunk_tokens,
        )
        lines = stage.ledger.size_of("cache") + stage.ledger.size_of("cache_prefill")
        assert budget_bytes == lines + placement.slots * cost.array_count * PAGE_BYTES
        assert placement.slots * cost.slack_bytes <= stage.ledger.size_of("allocator_slack")
        assert StageCacheCost.from_json_text(cost.to_json_text()) == cost
        arrays += cost.array_count
    pieces = [p for layer in request.profile.layers for p in layer.caches] + list(request.profile.head_caches)
    assert arrays == sum(piece.array_count for piece in pieces)


@pytest.mark.parametrize("seed", range(20))
def test_longer_requests_never_cost_less(seed: int) -> None:
    profile = drawn.request(seed).profile
    cost = stage_cache_cost(profile, 0, profile.layer_count)
    for chunk in (1, 64, 1000):
        whole = [cost.reserved_bytes(t) + cost.prefill_bytes(t, chunk) for t in range(0, 2000, 37)]
        assert whole == sorted(whole)
        pieces = [cost.largest_piece_bytes(t) for t in range(0, 2000, 37)]
        assert pieces == sorted(pieces)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "stage cache"),
        ('{"format":"x","slack_bytes_per_array":0,"pieces":[]}', "format"),
        ('{"format":"macmesh-stage-cache/1","slack_bytes_per_array":0,"pieces":[{"count":0}]}', "pieces"),
    ],
)
def test_what_is_no_cost_is_refused_with_the_place(text: str, words: str) -> None:
    with pytest.raises(LocalProfileError, match=words):
        StageCacheCost.from_json_text(text)
