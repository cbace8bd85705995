"""Times the planner, and compares it with a split in proportion to free memory on tight clusters.

Usage: python bench/placement.py [--json] [--only times|tight] [--cases N] [--seed N] [--jobs N]

Times: each row plans different random instances of one size, each three times (once beyond 32 nodes), of which
the shortest counts, so that what else the machine does is not timed. The percentiles are over the instances. A
refusal's time includes the largest context that fits, the deficits and all else that it tells.

Tight clusters: 2 to 4 machines of unequal free memory and a model of equal layers that fills 85 to 100 % of it
together. The yardstick is a common rule: layers in proportion to free memory, rounded down, leftovers to the
largest remainders, at least one layer each, then a check of each node. Whether any split exists is decided by
trying every number of layers on every node, with nothing of the planner.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any, get_args

from macmesh_placement import (
    AttentionFacts,
    CachePiece,
    LayerProfile,
    ModelProfile,
    NodeCapacity,
    Objective,
    Placement,
    PlanRequest,
    Refusal,
    Reserves,
    Scratch,
    ScratchTerm,
    all_cut_points,
    plan,
)
from proportional_split import proportional_split

GB = 10**9
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
CONTEXT_TOKENS = 131_072
#: Nodes, layers, instances, fill of the feasible ones, fill of the refused ones. A thousand nodes that share
#: 128 layers must be emptier, or none of them holds a single layer.
SIZES = (
    (3, 62, 40, 0.9, 1.1),
    (8, 128, 20, 0.9, 1.1),
    (32, 128, 8, 0.8, 1.1),
    (1000, 128, 3, 0.1, 1.1),
)
_REPEATS, _MOST_REPEATED_NODES = 3, 32
BANDS = ((0.85, 0.95), (0.95, 1.0))
#: Memory of machines as they are sold, and the share of it that the GPU may wire.
MACHINES_GB = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192)
USABLE_SHARE = 0.75


def make_model(layer_count: int) -> ModelProfile:
    """A mixture of experts of 2.5 GB a layer, every fourth layer a little larger."""
    small, large = (
        LayerProfile(
            weight_bytes=weight,
            active_weight_bytes=weight // 20,
            active_parameters=weight // 20,
            parameter_count=20,
            scratch=Scratch(live=(ScratchTerm(0, 60_000, 0, 0),)),
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
        position_limit=CONTEXT_TOKENS,
        cut_points=all_cut_points(layer_count),
    )


def make_nodes(count: int, model: ModelProfile, fill: float, rng: Random) -> tuple[NodeCapacity, ...]:
    """Different machines filled to about ``fill``; all but the last hold the even split among themselves."""
    per_node = 2 * GB  # what every stage needs beside weights and cache, generously
    need = model.total_weight_bytes + model.layer_count * 4096 * CONTEXT_TOKENS
    shares = [rng.uniform(1, 2) for _ in range(count)]
    holders = max(1, count - 1)
    nodes = []
    for index, share in enumerate(shares):
        usable = int(need / fill * share / sum(shares)) + per_node
        low, high = (model.layer_count * at // holders for at in (index, index + 1))
        nodes.append(
            NodeCapacity(
                node_id=f"node-{index}",
                ram_bytes=int(usable / USABLE_SHARE),
                usable_bytes=usable,
                bandwidth_gb_per_s=rng.choice((273.0, 410.0, 546.0, 819.0)),
                resident_layers=frozenset(range(low, high) if index < count - 1 else ()),
            )
        )
    return tuple(nodes)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]


def measure(nodes: int, layers: int, fill: float, objective: Objective, instances: int) -> dict[str, Any]:
    """Plans that many random instances of one size."""
    model = make_model(layers)
    times, results = [], []
    for seed in range(instances):
        rng = Random(seed)  # noqa: S311  drawn cases, no secrets
        request = PlanRequest(profile=model, nodes=make_nodes(nodes, model, fill, rng), objective=objective)
        runs = []
        for _ in range(_REPEATS if nodes <= _MOST_REPEATED_NODES else 1):
            start = time.perf_counter()
            result = plan(request)
            runs.append((time.perf_counter() - start) * 1000)
        results.append(result)
        times.append(min(runs))
    placed = [result for result in results if isinstance(result, Placement)]
    return {
        "nodes": nodes,
        "layers": layers,
        "fill": fill,
        "objective": objective,
        "instances": instances,
        "refused": sum(isinstance(result, Refusal) for result in results),
        "exact": sum(result.certificate.exact for result in placed),
        "p50_ms": round(statistics.median(times), 2),
        "p99_ms": round(percentile(times, 0.99), 2),
    }


@dataclass(frozen=True, slots=True)
class TightCase:
    """A tight cluster: free bytes of each node, and a model of equal layers."""

    free_bytes: tuple[int, ...]
    layer_count: int
    weight_bytes: int
    cache_bytes: int

    @property
    def layer_bytes(self) -> int:
        """What one layer needs."""
        return self.weight_bytes + self.cache_bytes

    @property
    def fill(self) -> float:
        """Share of the free memory that the model needs."""
        return self.layer_count * self.layer_bytes / sum(self.free_bytes)


_CASE_CONTEXT_TOKENS = 4096


def draw_case(seed: int, *, with_cache: bool) -> TightCase:
    """A case from a seed: 2 to 4 machines of which at least two differ, filled to 85 to 100 %."""
    rng = Random(2 * seed + with_cache)  # noqa: S311  drawn cases, no secrets
    while True:
        sizes = [rng.choice(MACHINES_GB) for _ in range(rng.randint(2, 4))]
        if len(set(sizes)) > 1:
            break
    free = tuple(int(size * GB * USABLE_SHARE * rng.uniform(0.8, 1.0)) for size in sizes)
    layers = rng.randint(16, 96)
    layer_bytes = int(sum(free) * rng.uniform(0.85, 1.0) / layers)
    share = rng.uniform(0.1, 0.5) if with_cache else 0.0
    per_token = int(layer_bytes * share / _CASE_CONTEXT_TOKENS)
    cache_bytes = per_token * _CASE_CONTEXT_TOKENS
    return TightCase(free, layers, layer_bytes - cache_bytes, cache_bytes)


def proportional_accepts(case: TightCase, *, layer_bytes: int) -> bool:
    """Whether that split passes its check of each node; there is no second try."""
    storage = layer_bytes * case.layer_count
    counts = proportional_split(case.free_bytes, case.layer_count)
    return all(
        storage * count // case.layer_count <= free
        for count, free in zip(counts, case.free_bytes, strict=True)
    )


def split_exists(case: TightCase) -> bool:
    """Whether any split holds the model: every number of layers on every node is tried."""
    reachable = {0}
    for free in case.free_bytes:
        held = [count for count in range(case.layer_count + 1) if count * case.layer_bytes <= free]
        reachable = {
            so_far + count for so_far in reachable for count in held if so_far + count <= case.layer_count
        }
    return case.layer_count in reachable


def planner_accepts(case: TightCase) -> bool:
    """Whether the planner places the same model: nothing but its layers weighs anything worth mentioning."""
    caches: tuple[CachePiece, ...] = ()
    if case.cache_bytes:
        per_token = case.cache_bytes // _CASE_CONTEXT_TOKENS
        caches = (CachePiece(kind="growing", source="KVCache", bytes_per_token=per_token, array_count=0),)
    layer = LayerProfile(
        weight_bytes=case.weight_bytes,
        active_weight_bytes=case.weight_bytes,
        parameter_count=0,
        caches=caches,
    )
    profile = ModelProfile(
        model_id="tight",
        model_type="bench",
        digest="",
        layers=(layer,) * case.layer_count,
        embedding_bytes=0,
        norm_bytes=0,
        head_bytes=0,
        tied=False,
        hidden_size=1,
        vocab_size=1,
        activation_bytes=1,
        position_limit=_CASE_CONTEXT_TOKENS,
        cut_points=all_cut_points(case.layer_count),
        outer_parameter_count=0,
    )
    nodes = tuple(
        NodeCapacity(node_id=str(index), ram_bytes=free, usable_bytes=free, bandwidth_gb_per_s=400.0)
        for index, free in enumerate(case.free_bytes)
    )
    nothing = Reserves(runtime_reserve_bytes=0, buffer_cache_bytes=0, transport_pool_bytes=0)
    request = PlanRequest(
        profile=profile, nodes=nodes, objective="latency", prefill_chunk_tokens=1, reserves=nothing
    )
    result = plan(request)
    if isinstance(result, Placement) and min(stage.ledger.headroom_bytes for stage in result.stages) < 0:
        raise AssertionError(f"an accepted plan whose ledger does not close: {case}")
    return result.feasible


def judge(seeds: range, with_cache: bool) -> list[dict[str, int]]:
    """Counts of each band over cases drawn from seeds."""
    counts = [dict.fromkeys(("cases", "feasible", "proportional", "planner", "blind"), 0) for _ in BANDS]
    for seed in seeds:
        case = draw_case(seed, with_cache=with_cache)
        band = next((i for i, (low, high) in enumerate(BANDS) if low <= case.fill < high), None)
        if band is None:  # rounding to whole bytes left the range
            continue
        count = counts[band]
        count["cases"] += 1
        exists = split_exists(case)
        if proportional_accepts(case, layer_bytes=case.weight_bytes) and not proportional_accepts(
            case, layer_bytes=case.layer_bytes
        ):
            count["blind"] += 1
        if not exists:
            continue
        count["feasible"] += 1
        count["proportional"] += not proportional_accepts(case, layer_bytes=case.layer_bytes)
        count["planner"] += not planner_accepts(case)
    return counts


def compare(cases: int, seed: int, jobs: int, *, with_cache: bool) -> list[dict[str, Any]]:
    """The comparison over that many cases, a row for each band."""
    blocks = [range(seed + start, seed + min(start + 250, cases)) for start in range(0, cases, 250)]
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            parts = list(pool.map(judge, blocks, [with_cache] * len(blocks)))
    else:
        parts = [judge(block, with_cache) for block in blocks]
    rows = []
    for index, (low, high) in enumerate(BANDS):
        total = {name: sum(part[index][name] for part in parts) for name in parts[0][index]}
        feasible = max(1, total["feasible"])
        rows.append(
            {
                "cache_counted": with_cache,
                "fill": [low, high],
                "cases": total["cases"],
                "feasible": total["feasible"],
                "proportional_rejects": total["proportional"],
                "proportional_rejects_percent": round(100 * total["proportional"] / feasible, 2),
                "planner_rejects": total["planner"],
                "planner_rejects_percent": round(100 * total["planner"] / feasible, 2),
                "weights_only_rule_accepts_and_overflows": total["blind"],
                "weights_only_rule_accepts_and_overflows_percent": round(
                    100 * total["blind"] / max(1, total["cases"]), 2
                ),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of equal keys for people."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 where the planner rejected what fits."""
    parser = argparse.ArgumentParser(
        description="times the planner and compares it with a proportional split"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=("times", "tight"), help="only one half")
    parser.add_argument("--cases", type=int, default=20_000, help="tight clusters (default 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first tight cluster (default 0)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    parser.add_argument("--largest", type=int, default=1000, help="leave out clusters of more nodes")
    args = parser.parse_args(argv)
    say: Callable[[str], object] = (lambda _text: None) if args.json else print
    found: dict[str, Any] = {"format": "macmesh-bench-placement/1", "python": sys.version.split()[0]}
    if args.only != "tight":
        found["times"] = [
            measure(nodes, layers, fill, objective, instances)
            for nodes, layers, instances, fits, refused in SIZES
            if nodes <= args.largest
            for fill in (fits, refused)
            for objective in OBJECTIVES
        ]
        say(table(found["times"]))
    if args.only != "times":
        start = time.perf_counter()
        found["tight"] = [
            row
            for with_cache in (False, True)
            for row in compare(args.cases, args.seed, args.jobs, with_cache=with_cache)
        ]
        found["tight_seconds"] = round(time.perf_counter() - start, 1)
        say(table(found["tight"]))
    if args.json:
        json.dump(found, sys.stdout, indent=1)
        print()
    return int(any(row["planner_rejects"] for row in found.get("tight", ())))


if __name__ == "__main__":
    sys.exit(main())
