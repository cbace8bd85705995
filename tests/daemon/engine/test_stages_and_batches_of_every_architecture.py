"""Every architecture of the pinned mlx-lm against mlx-lm alone.

In stages over a real group, to the bit; as rows of batches that requests join and leave; from caches taken up. All of
an architecture in one test: its model is made once, and what mlx-lm alone generates is computed once.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from macmesh_daemon.engine.adapters.refused import REFUSED
from summary import BATCHES, SPLITS
from zoo import BROKEN, CONFIGS, METAL_ONLY
from zoo.batchtable import Requests, compare
from zoo.splits import NOT_RUN
from zoo.splittable import StagesError, Workers, split

LONG_LIVED: list[Workers] = []


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    while LONG_LIVED:
        LONG_LIVED.pop().close()


def workers() -> Workers:
    """Those that are there; new ones after a failure."""
    if not LONG_LIVED:
        LONG_LIVED.append(Workers())
    return LONG_LIVED[0]


@pytest.mark.process
@pytest.mark.parametrize("name", CONFIGS)
def test_stages_and_batches_generate_what_one_process_does(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    try:
        split_up = split(workers(), name, tmp_path / "m")
    except StagesError:
        LONG_LIVED.pop().close()
        raise
    rows = split_up.rows
    request.config.stash.setdefault(SPLITS, []).extend(row.text for row in rows)
    if split_up.anatomy is not None:
        known = split_up.expected.tokens if split_up.expected else ()
        together = compare(name, Requests(split_up.model, split_up.anatomy), known)
        request.config.stash.setdefault(BATCHES, []).append(together.text)
        assert together.equal, together.reason
    if name in NOT_RUN or name in REFUSED:
        assert [row.cuts for row in rows] == [()]
        assert REFUSED.get(name, "not run") in rows[0].reason
        return
    assert [len(row.cuts) for row in rows] == [1, 2]
    assert all(row.equal for row in rows), [row.text for row in rows]


def test_exceptions_are_few() -> None:
    assert set(NOT_RUN) == set(BROKEN) | METAL_ONLY
    assert set(REFUSED) == {"nanbeige", "iquestloopcoder"}
