from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_placement import Placement, PlanRequest, Refusal, plan
from placement import drawn
from placement.brute_force import needed_bytes, plans

SEEDS = st.integers(0, 2**48)


def _assert_sound(request: PlanRequest, placement: Placement) -> None:
    nodes = {node.node_id: node for node in request.nodes}
    edges = [(stage.first_layer, stage.end_layer) for stage in placement.stages]
    assert edges[0][0] == 0
    assert edges[-1][1] == request.profile.layer_count
    assert all(left[1] == right[0] for left, right in pairwise(edges))
    assert len({stage.node_id for stage in placement.stages}) == len(placement.stages)
    for stage in placement.stages:
        node = nodes[stage.node_id]
        assert stage.ledger.total_bytes == needed_bytes(request, node, stage.first_layer, stage.end_layer)
        assert stage.ledger.headroom_bytes >= 0
        assert stage.ledger.usable_bytes == node.usable_bytes


@settings(max_examples=400, deadline=None)
@given(SEEDS)
def test_optimal_sound_and_fewest_bytes_on_every_small_case(seed: int) -> None:
    request = drawn.request(seed)
    every = plans(request)
    result = plan(request)
    if not every:
        assert isinstance(result, Refusal)
        return
    assert isinstance(result, Placement), result
    _assert_sound(request, result)
    best = min(option.objective for option in every)
    certificate = result.certificate
    assert certificate.exact
    assert certificate.best_objective_seconds <= best * (1 + 1e-9)
    assert certificate.best_objective_seconds >= best * (1 - 1e-9)
    limit = best * (1 + request.tolerance)
    assert certificate.objective_seconds <= limit * (1 + 1e-8)
    stages = tuple((stage.node_id, stage.first_layer, stage.end_layer) for stage in result.stages)
    same = [option for option in every if option.stages == stages]
    assert len(same) == 1
    assert result.bytes_to_load == same[0].load_bytes
    fewest = min(option.load_bytes for option in every if option.objective <= limit * (1 + 1e-8))
    if certificate.fewest_bytes_proved:
        assert result.bytes_to_load <= fewest
