"""What a node would have to load, given what it holds: parameters only, in bytes.

A node holds layers, the embedding, and the head with the final norm, each whole or not at all; where several
nodes share each layer by tensor parallelism, their parts are of use only to as many nodes again.
"""

import numpy as np

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.profile import ModelProfile
from macmesh_placement.tables import Additive, Integers, additive, boundaries


def missing_layers(profile: ModelProfile, nodes: tuple[NodeCapacity, ...], ways: int = 1) -> Integers:
    """[nodes, layers]: bytes of each layer that a node lacks; 0 where it holds the layer, split over that many."""
    missing = np.tile(np.array([layer.weight_bytes for layer in profile.layers]), (len(nodes), 1))
    for row, node in enumerate(nodes):
        if node.resident_ways == ways and node.resident_layers:
            missing[row, list(node.resident_layers)] = 0
    return missing


def missing_head(profile: ModelProfile, node: NodeCapacity) -> int:
    """Bytes outside the layers that the node lacks for a first stage that is not the last too."""
    return 0 if node.holds_embedding and node.resident_ways == 1 else profile.embedding_bytes


def missing_tail(profile: ModelProfile, node: NodeCapacity) -> int:
    """Bytes outside the layers that the node lacks for a last stage that is not the first too."""
    return 0 if node.holds_head and node.resident_ways == 1 else profile.tail_bytes


def whole_load_bytes(profile: ModelProfile, node: NodeCapacity, ways: int = 1) -> int:
    """Bytes that the node lacks for the whole model in one stage.

    There a tied head is the embedding itself: a node that holds the head lacks what the head does not copy.

    Args:
        profile: The model, or the part of it that each of ``ways`` nodes holds.
        node: The node.
        ways: Nodes that share every layer; 1: whole layers.
    """
    held = node.resident_ways == ways
    has_embedding, has_head = held and node.holds_embedding, held and node.holds_head
    load = int(missing_layers(profile, (node,), ways).sum())
    if not has_embedding:
        load += profile.embedding_bytes - (profile.tied_copy_bytes if has_head else 0)
    return load + (0 if has_head else profile.norm_bytes + profile.head_bytes)


def stage_loads(profile: ModelProfile, nodes: tuple[NodeCapacity, ...]) -> Additive:
    """Bytes that each stage would have to load, in plans of more than one stage."""
    return additive(
        missing_layers(profile, nodes).astype(np.float64),
        np.array([missing_head(profile, node) for node in nodes], dtype=np.float64),
        np.array([missing_tail(profile, node) for node in nodes], dtype=np.float64),
        boundaries(profile),
    )
