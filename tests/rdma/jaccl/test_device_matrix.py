import dataclasses
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_rdma.jaccl.choice import GroupChoice, choose_group
from macmesh_rdma.jaccl.device_matrix import DeviceMatrix, MatrixRefusal, device_matrix
from macmesh_rdma.jaccl.facts import CableEnd, RdmaFacts


def cabled(size: int, cables: list[tuple[int, int]]) -> list[RdmaFacts]:
    """Nodes joined by these cables; every node's devices are numbered as its cables are plugged."""
    ends: list[list[CableEnd]] = [[] for _ in range(size)]
    for number, (a, b) in enumerate(cables):
        ends[a].append(CableEnd(f"rdma_en{len(ends[a]) + 2}", f"D{number}-a", (f"D{number}-b",)))
        ends[b].append(CableEnd(f"rdma_en{len(ends[b]) + 2}", f"D{number}-b", (f"D{number}-a",)))
    return [RdmaFacts("25C56", "0.32.4", tuple(mine), 10, 100) for mine in ends]


def spoilt(facts: list[RdmaFacts], rank: int, end: int, **changes: object) -> list[RdmaFacts]:
    ends = list(facts[rank].ends)
    ends[end] = dataclasses.replace(ends[end], **changes)  # type: ignore[arg-type]
    return [*facts[:rank], dataclasses.replace(facts[rank], ends=tuple(ends)), *facts[rank + 1 :]]


MESH = list(itertools.combinations(range(4), 2))
RING = [(0, 1), (1, 2), (2, 3), (3, 0)]


def test_two_macs_with_one_cable() -> None:
    matrix = device_matrix(cabled(2, [(0, 1)]))
    assert matrix == DeviceMatrix((((), ("rdma_en2",)), (("rdma_en2",), ())), ring=False)
    assert isinstance(matrix, DeviceMatrix)
    assert json.loads(matrix.to_json()) == [[None, "rdma_en2"], ["rdma_en2", None]]


def test_two_cables_keep_their_ends_together() -> None:
    facts = cabled(2, [(0, 1), (0, 1)])
    # The second Mac's ports the other way round.
    swapped = [
        facts[0],
        dataclasses.replace(
            facts[1],
            ends=tuple(
                dataclasses.replace(end, device=name)
                for end, name in zip(facts[1].ends, ("rdma_en3", "rdma_en2"), strict=True)
            ),
        ),
    ]
    matrix = device_matrix(swapped)
    assert isinstance(matrix, DeviceMatrix)
    assert matrix.devices[0][1] == ("rdma_en2", "rdma_en3")
    assert matrix.devices[1][0] == ("rdma_en3", "rdma_en2")
    assert json.loads(matrix.to_json())[0] == [None, ["rdma_en2", "rdma_en3"]]


@given(st.integers(2, 8), st.data())
def test_every_entry_is_the_end_of_a_cable_to_that_rank(size: int, data: st.DataObject) -> None:
    pairs = list(itertools.combinations(range(size), 2))
    cables = data.draw(st.lists(st.sampled_from(pairs), max_size=20)) + data.draw(
        st.sampled_from([[], pairs, [(rank, (rank + 1) % size) for rank in range(size)]])
    )
    matrix = device_matrix(cabled(size, cables))
    joined = {tuple(sorted(cable)) for cable in cables}
    ring = {tuple(sorted((rank, (rank + 1) % size))) for rank in range(size)}
    if isinstance(matrix, MatrixRefusal):
        assert not ring <= joined
        assert len(matrix.reasons) == len(set(pairs) - joined)
        return
    assert matrix.ring == (not set(pairs) <= joined)
    facts = cabled(size, cables)
    widths = set()
    for a, b in itertools.product(range(size), repeat=2):
        cell, back = matrix.devices[a][b], matrix.devices[b][a]
        assert len(cell) == len(back)
        if cell:
            widths.add(len(cell))
        assert bool(cell) == (a != b and (not matrix.ring or tuple(sorted((a, b))) in ring))
        for near_name, far_name in zip(cell, back, strict=True):
            near = next(end for end in facts[a].ends if end.device == near_name)
            far = next(end for end in facts[b].ends if end.device == far_name)
            assert near.peer_uuids == (far.domain_uuid,)
            assert far.peer_uuids == (near.domain_uuid,)
    assert len(widths) == 1


def test_a_ring_where_there_is_no_mesh() -> None:
    matrix = device_matrix(cabled(4, RING))
    assert isinstance(matrix, DeviceMatrix)
    assert matrix.ring
    assert matrix.devices[0][2] == ()
    refused = device_matrix(cabled(4, [(0, 1), (1, 2), (2, 3)]))
    assert refused == MatrixRefusal(
        tuple(
            f"ranks {a} and {b} have no Thunderbolt cable between them" for a, b in [(0, 2), (0, 3), (1, 3)]
        )
    )


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (cabled(1, []), "2 to 8 ranks, not 1"),
        (cabled(9, []), "2 to 8 ranks, not 9"),
        (
            [*cabled(2, [(0, 1)])[:1], RdmaFacts("25C56", "0.32.4", refused="RDMA is off")],
            "rank 1: RDMA is off",
        ),
        (
            [cabled(2, [(0, 1)])[0], dataclasses.replace(cabled(2, [(0, 1)])[1], macos_build="25D1")],
            "same macOS build (rank 0: 25C56, rank 1: 25D1)",
        ),
        (
            [cabled(2, [(0, 1)])[0], dataclasses.replace(cabled(2, [(0, 1)])[1], mlx_version="")],
            "same mlx version (rank 0: 0.32.4, rank 1: unknown)",
        ),
        (spoilt(cabled(2, [(0, 1)]), 1, 0, refused="no GID"), "have a cable, but at rank 1 no GID"),
        (spoilt(cabled(2, [(0, 1)]), 1, 0, peer_uuids=()), "rdma_en2 of rank 0 sees rank 1, which does not"),
    ],
)
def test_refusals_say_why(facts: list[RdmaFacts], told: str) -> None:
    refusal = device_matrix(facts)
    assert isinstance(refusal, MatrixRefusal)
    assert told in refusal.reasons[0]


def test_choice_of_a_group() -> None:
    mesh, ring = device_matrix(cabled(4, MESH)), device_matrix(cabled(4, RING))
    none = MatrixRefusal(("no cable",))
    taken = choose_group("auto", mesh, jaccl_built=True)
    assert isinstance(taken, GroupChoice)
    assert (taken.provider, taken.matrix) == ("jaccl", mesh)
    assert "mesh with 1 cable" in taken.reason
    assert choose_group("links", mesh, jaccl_built=True) == GroupChoice(
        "links", "asked for", (("jaccl", "not asked for"),)
    )
    for devices, options, why in [
        (mesh, {"jaccl_built": False}, "no jaccl on this system"),
        (none, {"jaccl_built": True}, "no cable"),
        (ring, {"jaccl_built": True, "all_pairs": True}, "no neighbours"),
        (mesh, {"jaccl_built": True, "self_test_failure": "it hung"}, "it hung"),
    ]:
        links = choose_group("auto", devices, **options)  # type: ignore[arg-type]
        assert isinstance(links, GroupChoice)
        assert links.provider == "links"
        assert why in links.refused[0][1]
        demanded = choose_group("jaccl", devices, **options)  # type: ignore[arg-type]
        assert isinstance(demanded, MatrixRefusal)
        assert why in demanded.reasons[0]
    assert isinstance(choose_group("jaccl", ring, jaccl_built=True), GroupChoice)
