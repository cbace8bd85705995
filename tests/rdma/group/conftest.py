from collections.abc import Callable, Iterator
from typing import Any

import pytest

from macmesh_rdma.native import load_group
from support.group.ranks import Pool, Ranks, type_of_link


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Ranks]]:
    """Joins ranks, with the shared memory that the default options ask for."""
    module = load_group()
    pool = Pool()
    options = module.LinkOptions(
        num_buffers=8, frame_bytes=65536, buffer_sizes=6, max_outstanding=256, spin_us=20.0
    )

    def ranks(size: int, provider: type_of_link = "unix", **options_of_ranks: Any) -> Ranks:
        return Ranks(pool, size, provider, shm_bytes=module.shm_bytes(options), **options_of_ranks)

    yield ranks
    pool.close()


@pytest.fixture(scope="module", params=["tcp", "shm"])
def pair(request: pytest.FixtureRequest, start: Callable[..., Ranks]) -> Iterator[Ranks]:
    """Two healthy ranks, for tests that leave them so."""
    with start(2, request.param) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def trio(start: Callable[..., Ranks]) -> Iterator[Ranks]:
    """Three healthy ranks, joined by shared memory."""
    with start(3, "shm") as ranks:
        yield ranks
