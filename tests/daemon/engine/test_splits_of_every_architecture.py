"""Every architecture of the pinned mlx-lm in stages over a real group, against mlx-lm alone, to the bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from macmesh_daemon.engine.adapters.refused import REFUSED
from summary import SPLITS
from zoo import BROKEN, CONFIGS, METAL_ONLY
from zoo.splits import NOT_RUN
from zoo.splittable import StagesError, Workers, split_rows

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
def test_two_and_three_stages_generate_what_one_process_does(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    try:
        rows = split_rows(workers(), name, tmp_path / "m")
    except StagesError:
        LONG_LIVED.pop().close()
        raise
    request.config.stash.setdefault(SPLITS, []).extend(row.text for row in rows)
    if name in NOT_RUN or name in REFUSED:
        assert [row.cuts for row in rows] == [()]
        assert REFUSED.get(name, "not run") in rows[0].reason
        return
    assert [len(row.cuts) for row in rows] == [1, 2]
    assert all(row.equal for row in rows), [row.text for row in rows]


def test_exceptions_are_few() -> None:
    assert set(NOT_RUN) == set(BROKEN) | METAL_ONLY
    assert set(REFUSED) == {"nanbeige", "iquestloopcoder"}
