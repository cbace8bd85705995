"""Which RDMA device each rank uses to reach each other rank: MLX's device matrix, or why there is none. Pure."""

import dataclasses
import json
from collections.abc import Sequence

from macmesh_rdma.jaccl.facts import CableEnd, RdmaFacts

MAX_RANKS = 8
"""``MESH_MAX_PEERS`` of MLX's jaccl; a ring of more ranks is not tried either."""

Matrix = tuple[tuple[tuple[str, ...], ...], ...]
"""``matrix[a][b]``: devices by which rank a reaches rank b, one for each cable; empty for itself and for none."""


@dataclasses.dataclass(frozen=True)
class DeviceMatrix:
    """A matrix that MLX's jaccl takes.

    Attributes:
        devices: see `Matrix`. The n-th device of a to b and that of b to a are the two ends of one cable.
        ring: the ranks form a ring in the order of their numbers and no full mesh; ``MLX_JACCL_RING`` must be
            set, and only neighbours can send to each other.
    """

    devices: Matrix
    ring: bool

    def to_json(self) -> str:
        """As the file that ``MLX_IBV_DEVICES`` names: null for itself, a name, or a list of names."""
        rows = [
            [None if not cell else cell[0] if len(cell) == 1 else list(cell) for cell in row]
            for row in self.devices
        ]
        return json.dumps(rows)


@dataclasses.dataclass(frozen=True)
class MatrixRefusal:
    """Why there is no matrix.

    Attributes:
        reasons: one line each, for people; those of the pairs name both ranks.
    """

    reasons: tuple[str, ...]


def device_matrix(facts: Sequence[RdmaFacts]) -> DeviceMatrix | MatrixRefusal:
    """The matrix for ranks with these facts, in the order of the ranks.

    A full mesh where every pair has a usable cable; else a ring where each rank has one to the rank before and to
    the rank after it. MLX takes a ring only with equally many cables everywhere; so all pairs use as many as the
    pair with the fewest, in a mesh too.
    """
    size = len(facts)
    if not 2 <= size <= MAX_RANKS:  # noqa: PLR2004  a group has two ends
        return MatrixRefusal((f"jaccl joins 2 to {MAX_RANKS} ranks, not {size}",))
    reasons = [f"rank {rank}: {fact.refused}" for rank, fact in enumerate(facts) if fact.refused]
    reasons += _different("macOS build", [fact.macos_build for fact in facts])
    reasons += _different("mlx version", [fact.mlx_version for fact in facts])
    if reasons:
        return MatrixRefusal(tuple(reasons))
    cables = {(a, b): cables_between(facts[a], facts[b]) for a in range(size) for b in range(a + 1, size)}
    missing = [pair for pair, found in cables.items() if not found]
    if missing:
        edges = {(min(rank, after), max(rank, after)) for rank, after in _ring(size)}
        cables = {pair: found for pair, found in cables.items() if pair in edges}
    wires = min(map(len, cables.values()))
    if wires == 0:
        return MatrixRefusal(tuple(missing_cable(facts[a], facts[b], a, b) for a, b in missing))
    return DeviceMatrix(_matrix(size, cables, wires), ring=bool(missing))


def _different(what: str, values: Sequence[str]) -> list[str]:
    if len(set(values)) == 1:
        return []
    told = ", ".join(f"rank {rank}: {value or 'unknown'}" for rank, value in enumerate(values))
    return [f"all ranks must have the same {what} ({told})"]


def cables_between(here: RdmaFacts, there: RdmaFacts) -> list[tuple[str, str]]:
    """Devices at both ends of the usable cables between two nodes, in the order of the first one's names."""
    return [
        (near.device, far.device)
        for near in here.ends
        for far in there.ends
        if _are_one_cable(near, far) and not near.refused and not far.refused
    ]


def _are_one_cable(near: CableEnd, far: CableEnd) -> bool:
    return far.domain_uuid in near.peer_uuids and near.domain_uuid in far.peer_uuids


def _ring(size: int) -> list[tuple[int, int]]:
    return [(rank, (rank + 1) % size) for rank in range(size)]


def _matrix(size: int, cables: dict[tuple[int, int], list[tuple[str, str]]], wires: int) -> Matrix:
    rows: list[list[tuple[str, ...]]] = [[() for _ in range(size)] for _ in range(size)]
    for (a, b), found in cables.items():
        rows[a][b] = tuple(near for near, _ in found[:wires])
        rows[b][a] = tuple(far for _, far in found[:wires])
    return tuple(map(tuple, rows))


def missing_cable(here: RdmaFacts, there: RdmaFacts, a: int, b: int) -> str:
    """Why two ranks have no usable cable, from the nearest to the farthest miss."""
    for near in here.ends:
        for far in there.ends:
            if _are_one_cable(near, far):
                why = "; ".join(
                    f"at rank {rank} {end.refused}" for rank, end in ((a, near), (b, far)) if end.refused
                )
                return f"ranks {a} and {b} have a cable, but {why}"
    for rank, other, opposite, end in (
        *((a, b, there, end) for end in here.ends),
        *((b, a, here, end) for end in there.ends),
    ):
        if any(far.domain_uuid in end.peer_uuids for far in opposite.ends):
            return (
                f"ranks {a} and {b}: {end.device} of rank {rank} sees rank {other}, which does not see it; "
                f"plug the cable in again"
            )
    return f"ranks {a} and {b} have no Thunderbolt cable between them"
