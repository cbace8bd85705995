"""The planner against one that tries everything, on thousands of drawn cases, and its certificate re-added."""

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from macmesh_placement import Placement, PlanRequest, Refusal, plan
from macmesh_placement.planner import attempt
from placement import drawn
from placement.brute_force import hop_seconds, link_between, needed_bytes, plans

#: Sums of the same terms in another order.
ROUNDING = 1e-8

Result = Placement | Refusal | None


def assert_sound(request: PlanRequest, placement: Placement) -> None:
    """The stages cover the model, each on a node of its own that has room, and keep to the pins."""
    nodes = {node.node_id: node for node in request.nodes}
    edges = [(stage.first_layer, stage.end_layer) for stage in placement.stages]
    assert edges[0][0] == 0
    assert edges[-1][1] == request.profile.layer_count
    assert all(left[1] == right[0] for left, right in pairwise(edges))
    used = [stage.node_id for stage in placement.stages]
    assert len(set(used)) == len(used)
    assert request.required_node_ids <= set(used)
    assert not request.excluded_node_ids & set(used)
    assert request.head_node_id in {"", used[0]}
    assert request.tail_node_id in {"", used[-1]}
    for stage in placement.stages:
        node = nodes[stage.node_id]
        assert stage.ledger.total_bytes == needed_bytes(request, node, stage.first_layer, stage.end_layer)
        assert stage.ledger.headroom_bytes >= 0
        assert stage.ledger.usable_bytes == node.usable_bytes


def assert_certificate_adds_up(value: dict[str, Any], slots: int) -> None:
    """From the JSON alone: every ledger, the bytes to load, and the objective."""
    for stage in value["stages"]:
        ledger = stage["ledger"]
        assert sum(entry["size_bytes"] for entry in ledger["entries"]) == ledger["total_bytes"]
        assert ledger["usable_bytes"] - ledger["total_bytes"] == ledger["headroom_bytes"] >= 0
    assert sum(stage["bytes_to_load"] for stage in value["stages"]) == value["bytes_to_load"]
    latency = sum(stage["predicted_seconds"] + stage["hop_seconds"] for stage in value["stages"])
    slowest = max(stage["predicted_seconds"] for stage in value["stages"])
    assert slowest == pytest.approx(value["predicted_slowest_stage_seconds"], rel=ROUNDING, abs=0)
    objective = {"latency": latency, "throughput": slowest, "balanced": max(latency, slots * slowest)}
    found = value["certificate"]["objective_seconds"]
    assert found == pytest.approx(objective[value["objective"]], rel=ROUNDING, abs=0)
    assert found >= value["certificate"]["best_objective_seconds"] * (1 - ROUNDING)


def check(request: PlanRequest, solve: Callable[[PlanRequest], Result] = plan) -> tuple[bool, bool]:
    """Compares the two planners; tells whether there was a plan, and whether its bytes were proved fewest."""
    every = plans(request)
    result = solve(request)
    if not len(every.objective):
        assert not isinstance(result, Placement)
        return False, False
    assert isinstance(result, Placement), result
    assert_sound(request, result)
    assert_certificate_adds_up(json.loads(json.dumps(result.to_json())), request.slots)
    best = float(every.objective.min())
    certificate = result.certificate
    assert certificate.exact
    assert certificate.best_objective_seconds == pytest.approx(best, rel=ROUNDING, abs=0)
    limit = best * (1 + request.tolerance) * (1 + ROUNDING)
    assert certificate.objective_seconds <= limit
    chosen = every.of(tuple((s.node_id, s.first_layer, s.end_layer) for s in result.stages))
    assert chosen is not None
    assert result.bytes_to_load == chosen.load_bytes
    assert certificate.objective_seconds == pytest.approx(chosen.objective, rel=ROUNDING, abs=0)
    near = every.objective <= best * (1 + request.tolerance) * (1 - ROUNDING)
    used = [node.node_id for node in request.nodes if node.node_id not in request.excluded_node_ids]
    linked = [link_between(request, a, b) for a in used for b in used if a < b]
    if any(link is not None and link.kind == "rdma" for link in linked) and (near & every.all_rdma).any():
        assert chosen.all_rdma
        near &= every.all_rdma
    if certificate.fewest_bytes_proved and near.any():
        assert result.bytes_to_load <= int(every.load_bytes[near].min())
    return True, certificate.fewest_bytes_proved


@pytest.mark.parametrize(
    ("first_seed", "count", "max_nodes", "max_layers"),
    [(0, 200, 4, 6), (200, 800, 4, 6), (10_000, 500, 5, 7), (20_000, 500, 3, 12), (30_000, 120, 5, 12)],
)
def test_optimal_sound_and_fewest_bytes_on_every_drawn_case(
    first_seed: int, count: int, max_nodes: int, max_layers: int
) -> None:
    seeds = range(first_seed, first_seed + count)
    solve = attempt if first_seed else plan  # what a refusal tells takes longer than the search
    check_all(partial(drawn.request, max_nodes=max_nodes, max_layers=max_layers), seeds, solve)


def test_optimal_and_sound_where_most_nodes_share_machines() -> None:
    check_all(drawn.crowded, range(300), attempt)


def check_all(
    draw: Callable[[int], PlanRequest], seeds: range, solve: Callable[[PlanRequest], Result] = plan
) -> None:
    planned = proved = 0
    for seed in seeds:
        try:
            found, is_proved = check(draw(seed), solve)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        planned += found
        proved += is_proved
    assert len(seeds) // 4 < planned < len(seeds)
    assert proved >= 0.99 * planned


def test_the_brute_force_counts_every_plan() -> None:
    request = drawn.request(30_003, max_nodes=5, max_layers=12)
    assert len(plans(request).place) == len(plans(request).objective)
    assert np.isfinite([hop_seconds(request, "n0", "n1", back=back) for back in (True, False)]).all()
