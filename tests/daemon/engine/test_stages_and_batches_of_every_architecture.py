"""Every architecture of the pinned mlx-lm against mlx-lm alone.

In two and in three stages of different sizes over a real group: a prompt in chunks that cross the windows, and tokens
behind them, to the bit. In three also: requests of different lengths as rows of batches, one of which joins and one of
which leaves midway; and a request that takes up the caches of another.

All of an architecture in one test: its model is made once, and what mlx-lm alone generates is computed once.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm import models

from macmesh_daemon.engine.adapters.refused import REFUSED
from macmesh_daemon.engine.unbatchable import REASONS
from summary import SPLITS
from zoo import BROKEN, CONFIGS, METAL_ONLY
from zoo.splits import NOT_RUN, chosen_cuts, is_uneven
from zoo.splittable import StagesError, Workers, split

ALONE = {*REASONS, "deepseek_v41", "llama4"}
"""Their requests are not batched; the last two as mlx-lm has no batch caches of their kinds."""

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
    name: str, shared_models: Path, request: pytest.FixtureRequest
) -> None:
    try:
        rows = split(workers(), name, shared_models)
    except StagesError:
        LONG_LIVED.pop().close()
        raise
    request.config.stash.setdefault(SPLITS, []).extend(row.text for row in rows)
    if name in NOT_RUN or name in REFUSED:
        assert [row.cuts for row in rows] == [()]
        assert REFUSED.get(name, "not run") in rows[0].reason
        assert rows[0].batches == ("no" if name in NOT_RUN else "equal")
        return
    assert [len(row.cuts) for row in rows] == [1, 2]
    assert all(row.equal for row in rows), [row.text for row in rows]
    batches = "alone" if name in ALONE else "equal"
    assert [row.batches for row in rows] == ["-", batches], [row.text for row in rows]


def test_exceptions_are_few() -> None:
    assert set(NOT_RUN) == set(BROKEN) | METAL_ONLY
    assert set(REFUSED) == {"nanbeige", "iquestloopcoder"}


def test_the_zoo_has_every_architecture_of_mlx_lm() -> None:
    modules = {path.stem for path in Path(models.__path__[0]).glob("*.py")}
    architectures = {
        name for name in modules if "class Model(" in (Path(models.__path__[0]) / f"{name}.py").read_text()
    }
    assert len(architectures) > 120
    assert architectures <= CONFIGS.keys()


def test_only_where_nothing_else_is_allowed_have_all_stages_one_size() -> None:
    for layers in range(4, 12):
        anatomy: Any = SimpleNamespace(layer_count=layers, cut_points=tuple(range(1, layers)), cut_reason="")
        for cuts in chosen_cuts(f"of {layers}", anatomy):
            assert is_uneven(layers, cuts)
    assert not is_uneven(6, (3,))
    assert not is_uneven(6, (2, 4))
    assert is_uneven(6, (1, 4))
