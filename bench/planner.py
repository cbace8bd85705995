"""Times the planner and prints one JSON object.

Usage: python bench/planner.py [--repeats N]
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any

from macmesh_placement import (
    AttentionFacts,
    CachePiece,
    LayerProfile,
    ModelProfile,
    NodeCapacity,
    Objective,
    Placement,
    PlanRequest,
    all_cut_points,
    plan,
)

GB = 10**9


def make_model(layer_count: int) -> ModelProfile:
    """A mixture of experts of 2.5 GB a layer, every fourth layer a little larger."""
    small, large = (
        LayerProfile(
            weight_bytes=weight,
            active_weight_bytes=weight // 20,
            active_parameters=weight // 20,
            parameter_count=20,
            activation_bytes_per_token=60_000,
            caches=(CachePiece(kind="growing", source="KVCache", bytes_per_token=4096),),
            attention=AttentionFacts(query_heads=48, fused=True, score_bytes=2),
        )
        for weight in (2_500_000_000, 2_600_000_000)
    )
    return ModelProfile(
        model_id=f"bench-{layer_count}",
        model_type="bench",
        digest="",
        layers=tuple(large if index % 4 == 0 else small for index in range(layer_count)),
        embedding_bytes=400_000_000,
        norm_bytes=6144,
        head_bytes=400_000_000,
        tied=False,
        hidden_size=3072,
        vocab_size=200_064,
        activation_bytes=2,
        position_limit=131_072,
        cut_points=all_cut_points(layer_count),
    )


def make_nodes(count: int, model: ModelProfile, fill: float) -> tuple[NodeCapacity, ...]:
    """Different machines filled to about ``fill``; all but the last hold the even split among themselves."""
    need = model.total_weight_bytes + model.layer_count * 4096 * 131_072 + count * 2 * GB
    weights = [1 + (7 * index % 5) / 4 for index in range(count)]
    usable = [int(need / fill * weight / sum(weights)) for weight in weights]
    return tuple(
        NodeCapacity(
            node_id=f"node-{index}",
            ram_bytes=int(size / 0.75),
            usable_bytes=size,
            bandwidth_gb_per_s=(273.0, 410.0, 546.0, 819.0)[index % 4],
            resident_layers=frozenset(
                range(
                    model.layer_count * index // (count - 1), model.layer_count * (index + 1) // (count - 1)
                )
                if index < count - 1
                else ()
            ),
        )
        for index, size in enumerate(usable)
    )


def measure(
    nodes: int, layers: int, fill: float, objective: Objective, slots: int, repeats: int
) -> dict[str, Any]:
    """Plans the same request again and again."""
    model = make_model(layers)
    request = PlanRequest(
        profile=model,
        nodes=make_nodes(nodes, model, fill),
        objective=objective,
        slots=slots,
        context_tokens=0,
    )
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = plan(request)
        times.append((time.perf_counter() - start) * 1000)
    return {
        "nodes": nodes,
        "layers": layers,
        "fill": fill,
        "objective": objective,
        "slots": slots,
        "feasible": result.feasible,
        "stages": len(result.stages) if isinstance(result, Placement) else 0,
        "exact": isinstance(result, Placement) and result.certificate.exact,
        "fewest_bytes_proved": isinstance(result, Placement) and result.certificate.fewest_bytes_proved,
        "p50_ms": round(statistics.median(times), 2),
        "max_ms": round(max(times), 2),
    }


def main() -> int:
    """Measures the cases of the documentation."""
    parser = argparse.ArgumentParser(description="times the planner")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    cases: list[tuple[int, int, float, Objective, int]] = [
        (3, 62, 0.9, "balanced", 1),
        (8, 128, 0.9, "latency", 1),
        (8, 128, 0.5, "latency", 1),
        (8, 128, 0.9, "throughput", 1),
        (8, 128, 0.9, "balanced", 1),
        (8, 128, 0.9, "balanced", 4),
        (8, 128, 1.2, "balanced", 1),
        (12, 128, 0.8, "latency", 1),
        (32, 128, 0.8, "latency", 1),
        (1000, 128, 0.8, "latency", 1),
    ]
    results = [measure(*case, repeats if case[0] < 100 else 1) for case in cases]  # noqa: PLR2004  the big one is slow
    json.dump(
        {"format": "macmesh-bench-planner/1", "python": sys.version.split()[0], "cases": results},
        sys.stdout,
        indent=1,
    )
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
