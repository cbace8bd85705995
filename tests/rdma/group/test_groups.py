from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest

from macmesh_rdma.native import load_group
from support.group.ranks import RankError, Ranks
from tinymodels import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.process
def test_split_orders_by_key_and_leaves_the_old_group_alone(
    start: Callable[..., Ranks], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = str(tmp_path_factory.mktemp("s"))
    with start(4, "tcp") as ranks:
        # Ranks 0 and 3 in reverse order, 1 and 2 in their own.
        for rank, (color, key) in enumerate([(0, 9), (1, -1), (1, -1), (0, 1)]):
            ranks.begin(rank, "split", folder, color, key)
        results = [ranks.finish(rank) for rank in range(4)]
    assert [(r["rank"], r["size"]) for r in results] == [(1, 2), (0, 2), (1, 2), (0, 2)]
    assert [r["order"] for r in results] == [[3, 0], [1, 2], [1, 2], [3, 0]]
    assert all(r["total"] == 2.0 and r["old"] == 6 for r in results)


@pytest.mark.process
@pytest.mark.parametrize("lonely", [5, -1])
def test_split_into_two_and_one(
    start: Callable[..., Ranks], tmp_path_factory: pytest.TempPathFactory, lonely: int
) -> None:
    folder = str(tmp_path_factory.mktemp("s"))
    with start(3, "shm") as ranks:
        for rank, color in enumerate([2, lonely, 2]):
            ranks.begin(rank, "split", folder, color, -1)
        results = [ranks.finish(rank) for rank in range(3)]
    assert [(r["rank"], r["size"]) for r in results] == [(0, 2), (0, 1), (1, 2)]
    assert [r["order"] for r in results] == [[0, 2], [1], [0, 2]]
    assert [r["total"] for r in results] == [2.0, 1.0, 2.0]


@pytest.mark.process
def test_the_group_of_mlx_outlives_the_python_object(start: Callable[..., Ranks]) -> None:
    with start(2, "tcp") as ranks:
        assert ranks.call("lives_on") == [[2.0, 2.0, 2.0]] * 2


@pytest.mark.process
@pytest.mark.parametrize("name", ["minimax", "llama"])
def test_tensor_parallel_gives_the_tokens_of_one_process(pair: Ranks, tmp_path: Path, name: str) -> None:
    # In bfloat16 each rank's part is rounded before the sum, so that near ties may fall otherwise.
    write_tiny_model(tmp_path, name, dtype=mx.float32)
    prompt = [3, 141, 59, 26, 5, 35, 89, 79, 32]
    alone = pair.call("tokens", str(tmp_path), prompt, 12, "alone")
    together = pair.call("tokens", str(tmp_path), prompt, 12, "parallel")
    assert not isinstance(alone[0], RankError), alone[0]
    assert len(alone[0]) == 12
    assert together == [alone[0], alone[0]]


@pytest.mark.process
def test_sharded_layers_agree_with_plain_ones(pair: Ranks) -> None:
    for plain, sharded in pair.call("sharded_layers"):
        np.testing.assert_allclose(sharded, plain, rtol=1e-5, atol=1e-6)


def test_wrong_arguments_are_refused() -> None:
    module = load_group()
    good = {
        "rank": 0,
        "size": 1,
        "peers": {},
        "epoch": (1, 2, 3),
        "name": "x",
        "timeout_seconds": 1,
        "spin_us": 0,
    }
    module.MeshGroup(**good).close()
    for wrong in (
        {"rank": 1},
        {"size": 0},
        {"timeout_seconds": 0},
        {"timeout_seconds": float("nan")},
        {"spin_us": -1},
        {"peers": {0: (None, None, -1)}},
        {"peers": {3: (None, None, -1)}},
    ):
        with pytest.raises(ValueError, match=r"cannot have|must be"):
            module.MeshGroup(**{**good, **wrong})
    with pytest.raises(TypeError):
        module.MeshGroup(**{**good, "peers": {1: (None, None)}})


def test_a_group_of_one() -> None:
    group = load_group().MeshGroup(
        rank=0, size=1, peers={}, epoch=(1, 2, 3), name="one", timeout_seconds=1, spin_us=0
    )
    assert (group.rank, group.size, group.failure, group.pool_bytes) == (0, 1, None, 0)
    group.timeout_seconds = 2.5
    assert group.timeout_seconds == 2.5
    assert group.mlx.size() == 1
    group.abort("enough")
    assert group.failure == ("aborted", "enough", -1)
    group.close()
    group.close()
