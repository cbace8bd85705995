"""Predicted cache bytes equal the real ones, for every architecture of the pinned mlx-lm."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from macmesh_daemon.engine.profile import _PROBE_TOKENS
from macmesh_daemon.engine.profile_caches import CHECK_STEPS, RECURRENT_CHECK_STEPS
from macmesh_daemon.engine.profile_views import HISTORIES
from macmesh_daemon.engine.stand_ins import UNPROFILED
from summary import TABLE
from zoo import BROKEN, CONFIGS
from zoo.cachetable import (
    RECURRENT_SHAPE_HISTORIES,
    SHAPE_HISTORIES,
    compare,
    exact_memory,
)


@pytest.fixture(scope="module", autouse=True)
def _exact_memory() -> Iterator[None]:
    with exact_memory():
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_reported_and_held_bytes_are_as_predicted(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    row = compare(name, tmp_path / "m")
    request.config.stash.setdefault(TABLE, []).append(row.text)
    if name in UNPROFILED:
        assert not row.kinds, "an exception that works is none"
        assert UNPROFILED[name] in row.reason
    else:
        assert row.equal, row.reason
        assert row.weights_equal


def test_exceptions_are_those_that_cannot_run_anywhere() -> None:
    assert set(UNPROFILED) == set(BROKEN)


def test_lengths_are_others_than_those_that_a_profile_is_traced_with() -> None:
    traced = {_PROBE_TOKENS, *CHECK_STEPS, *RECURRENT_CHECK_STEPS, *(n for h in HISTORIES for n in h)}
    compared = {n for history in (*SHAPE_HISTORIES, *RECURRENT_SHAPE_HISTORIES) for n in history}
    assert traced & compared == {1}
