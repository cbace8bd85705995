"""What a simulated cluster is made of: facts, a wanted model, a planner's split, a seeded generator."""

import random

from macmesh_daemon.cluster.messages import Deployment, ModelRef, NodeFacts, Stage, WantedModel

LAYERS = 24


def seeded(*seed: object) -> random.Random:
    """A generator that depends on the values alone, in every process."""
    return random.Random(" ".join(map(str, seed)))  # noqa: S311  replay, not secrets


def wanted_model(name: str = "m", stage_count: int = 0) -> WantedModel:
    return WantedModel(ModelRef(name, f"/models/{name}", f"digest-{name}"), 1024, 1, "balanced", stage_count)


def facts_of(node_id: str, *, portable: bool = False) -> NodeFacts:
    return NodeFacts(
        hostname=node_id,
        host_id=node_id,
        ram_bytes=1 << 37,
        usable_bytes=1 << 36,
        macmesh_version="0.1.0",
        mlx_version="0.32.4",
        mlx_lm_version="0.32.2",
        portable=portable,
    )


def split(wanted: WantedModel, node_ids: list[str]) -> Deployment:
    """An even split of the layers over the nodes."""
    edges = [LAYERS * i // len(node_ids) for i in range(len(node_ids) + 1)]
    stages = tuple(Stage(i, n, edges[i], edges[i + 1]) for i, n in enumerate(node_ids))
    return Deployment(wanted.model, LAYERS, wanted.context_tokens, wanted.slots, 256, stages, "ring", "safe")


def names_of(count: int) -> list[str]:
    """Node ids: letters as long as they last."""
    return [chr(ord("a") + i) if count <= 26 else f"n{i:04}" for i in range(count)]
