"""Random models and clusters of a size that can be tried exhaustively, drawn from a seed."""

from dataclasses import replace
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING

from macmesh_placement import (
    AttentionFacts,
    CachePiece,
    LayerProfile,
    Link,
    LocalPlanRequestError,
    ModelProfile,
    NodeCapacity,
    PlanRequest,
    Reserves,
    Scratch,
    ScratchTerm,
)

if TYPE_CHECKING:
    from macmesh_placement import LinkKind
    from macmesh_placement.cachecost import CacheKind

KIB = 1024

SMALL_RESERVES = Reserves(runtime_reserve_bytes=KIB, buffer_cache_bytes=KIB, transport_pool_bytes=4 * KIB)


def cache_piece(rng: Random) -> CachePiece:
    kinds: list[CacheKind] = ["growing", "ring", "chunked", "constant"]
    kind = rng.choice(kinds)
    if kind == "constant":
        return CachePiece(
            kind=kind,
            source="ArraysCache",
            constant_bytes=rng.randint(0, 5000),
            view_bytes_per_token=rng.randint(0, 8),
        )
    return CachePiece(
        kind=kind,
        source=kind,
        bytes_per_token=rng.randint(1, 64),
        window_tokens=rng.randint(1, 700) if kind != "growing" else None,
        step_tokens=rng.choice((1, 16, 256)),
    )


def scratch(rng: Random) -> Scratch:
    def terms() -> tuple[ScratchTerm, ...]:
        return tuple(
            ScratchTerm(
                rng.randint(0, 99),
                rng.randint(0, 64),
                rng.randint(0, 9),
                rng.randint(0, 2),
                rng.randint(0, 2),
            )
            for _ in range(rng.randint(0, 2))
        )

    return Scratch(live=terms(), largest=terms())


def layer(rng: Random) -> LayerProfile:
    weight = rng.choice((rng.randint(0, 200_000), 100_000))
    attention = AttentionFacts(
        query_heads=rng.randint(1, 4),
        fused=rng.random() < 0.5,
        score_bytes=2,
        traced=rng.random() < 0.3,
        window_tokens=rng.choice((None, rng.randint(1, 100))),
    )
    return LayerProfile(
        weight_bytes=weight,
        active_weight_bytes=rng.randint(0, weight),
        active_parameters=rng.randint(0, 200_000),
        parameter_count=rng.randint(0, 3),
        scratch=scratch(rng),
        caches=tuple(cache_piece(rng) for _ in range(rng.randint(0, 2))),
        attention=rng.choice((None, attention)),
    )


def profile(rng: Random, max_layers: int = 6) -> ModelProfile:
    layers = tuple(layer(rng) for _ in range(rng.randint(1, max_layers)))
    tied = rng.random() < 0.5
    cuts = tuple(range(1, len(layers)))
    if rng.random() < 0.25:
        cuts = tuple(cut for cut in cuts if rng.random() < 0.5)
    embedding_bytes = rng.randint(0, 100_000)
    return ModelProfile(
        model_id="m",
        model_type="test",
        digest="0" * 64,
        layers=layers,
        embedding_bytes=embedding_bytes,
        head_copy_bytes=embedding_bytes * 2 // 3 if tied and embedding_bytes % 2 else None,
        norm_bytes=rng.randint(0, 100),
        head_bytes=0 if tied else rng.randint(0, 100_000),
        tied=tied,
        hidden_size=rng.randint(1, 16),
        vocab_size=rng.randint(1, 50),
        activation_bytes=2,
        position_limit=rng.choice((None, rng.randint(700, 5000))),
        cut_points=cuts,
        cut_reason="" if len(cuts) == len(layers) - 1 else "drawn",
        handover_bytes=rng.choice((0, 0, rng.randint(1, 200))),
        shared_bytes=rng.randint(0, 1000),
        outer_parameter_count=rng.randint(0, 3),
        head_caches=tuple(cache_piece(rng) for _ in range(rng.choice((0, 0, 1)))),
    )


def request(seed: int, *, max_nodes: int = 4, max_layers: int = 6) -> PlanRequest:
    rng = Random(seed)  # noqa: S311  drawn cases, no secrets
    model = profile(rng, max_layers)
    context, slots = rng.randint(1, 700), rng.randint(1, 3)
    total = model.total_weight_bytes + 50_000
    for each in model.layers:
        total += 16 * KIB * each.parameter_count
        total += slots * (each.cache_bytes(context) + 16 * KIB * sum(p.array_count for p in each.caches))
    tight = rng.choice(((0.1, 1.3), (0.3, 0.8), (0.8, 1.5)))
    nodes = tuple(
        NodeCapacity(
            node_id=f"n{index}",
            host_id=rng.choice(("", "", "shared")),
            ram_bytes=rng.randint(total, 2 * total),
            usable_bytes=int(total * rng.uniform(*tight)),
            bandwidth_gb_per_s=rng.choice((100.0, 400.0, 400.0, 819.0)),
            flops_tflops=rng.choice((None, 0.5, 20.0)),
            fused_attention=rng.random() < 0.5,
            resident_layers=frozenset(
                rng.sample(range(model.layer_count), rng.randint(0, model.layer_count))
            ),
            holds_embedding=rng.random() < 0.3,
            holds_head=rng.random() < 0.3,
        )
        for index in range(rng.randint(1, max_nodes))
    )
    stage_count = rng.choice((0, 0, 0, 1, 2, 3))
    asked = PlanRequest(
        profile=model,
        nodes=nodes,
        context_tokens=context,
        slots=slots,
        prefill_chunk_tokens=rng.randint(1, 64),
        objective=rng.choice(("latency", "throughput", "balanced")),
        stage_count=stage_count,
        hop_latency_seconds=rng.choice((0.0, 1e-7, 1e-5)),
        tolerance=rng.choice((0.0, 0.02, 0.3)),
        reserves=SMALL_RESERVES,
        links=links(rng, nodes),
        decode_context_tokens=rng.choice((0, rng.randint(1, context))),
        prefill_share=rng.choice((0.0, 0.0, 0.5, 0.95)),
    )
    return pinned(rng, asked) if rng.random() < 0.3 else asked


def crowded(seed: int, *, max_nodes: int = 4, max_layers: int = 5) -> PlanRequest:
    """Most nodes on one or two machines whose RAM they could overcrowd, to be kept evenly busy."""
    asked = request(seed, max_nodes=max_nodes, max_layers=max_layers)
    rng = Random(~seed)  # noqa: S311  drawn cases, no secrets
    machines = rng.choice((("one",), ("one", "one", "two"), ("one", "one", "")))
    share = rng.choice((0.9, 1.3, 1.7))
    nodes = tuple(
        replace(
            node,
            host_id=rng.choice(machines),
            ram_bytes=max(
                1, int(share * rng.uniform(1.0, 1.2) * max(other.usable_bytes for other in asked.nodes))
            ),
        )
        for node in asked.nodes
    )
    return replace(asked, nodes=nodes, objective=rng.choice(("throughput", "balanced")))


def links(rng: Random, nodes: tuple[NodeCapacity, ...]) -> tuple[Link, ...]:
    """None, a ring, islands, or any: of one or several speeds."""
    pairs = [(a.node_id, b.node_id) for a, b in combinations(nodes, 2)]
    shape = rng.choice(("none", "none", "ring", "islands", "any", "all"))
    if shape == "ring":
        ends = {frozenset((a.node_id, b.node_id)) for a, b in zip(nodes, nodes[1:] + nodes[:1], strict=True)}
        pairs = [pair for pair in pairs if frozenset(pair) in ends]
    elif shape == "islands":
        pairs = [pair for pair in pairs if int(pair[0][1:]) % 2 == int(pair[1][1:]) % 2]
    elif shape == "any":
        pairs = [pair for pair in pairs if rng.random() < 0.7]
    elif shape == "none":
        pairs = []
    kinds: tuple[LinkKind, ...] = rng.choice((("rdma",), ("rdma", "tcp"), ("rdma", "tcp", "shm")))
    latency = rng.choice((1e-8, 1e-6, 1e-5))
    return tuple(
        Link(
            node_ids=pair,
            kind=(kind := rng.choice(kinds)),
            latency_seconds=latency * {"shm": 0, "rdma": 1, "tcp": rng.choice((3, 4))}[kind],
            gb_per_s=rng.choice((1.0, 6.0)),
        )
        for pair in pairs
    )


def pinned(rng: Random, asked: PlanRequest) -> PlanRequest:
    """The same with random pins; as it was where they contradict each other."""
    names = [node.node_id for node in asked.nodes]
    try:
        return replace(
            asked,
            required_node_ids=frozenset(rng.sample(names, rng.choice((0, 0, 1, 2)) % (len(names) + 1))),
            head_node_id=rng.choice(("", *names)),
            tail_node_id=rng.choice(("", *names)),
            excluded_node_ids=frozenset(rng.sample(names, rng.choice((0, 0, 1)) % len(names))),
        )
    except LocalPlanRequestError:
        return asked
