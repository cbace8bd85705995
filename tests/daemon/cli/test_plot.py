"""`--plot`: the series are what the planner says at each context, and the picture is there."""

import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macmesh_daemon.cli.plot import draw
from macmesh_daemon.cli.plot_data import Curve, Point, contexts, curve
from macmesh_placement import NodeCapacity, Placement, PlanRequest, Refusal, plan

from .conftest import Run, big_profile

GB = 10**9


def request(usable_gb: int) -> PlanRequest:
    node = NodeCapacity(node_id="a", ram_bytes=200 * GB, usable_bytes=usable_gb * GB, bandwidth_gb_per_s=500)
    return PlanRequest(profile=big_profile(), nodes=(node, replace(node, node_id="b")))


def test_contexts_are_evenly_spread_and_end_where_they_must() -> None:
    assert contexts(8192) == [1024, 1536, 2048, 2816, 4096, 5888, 8192]
    assert contexts(5000) == [1024, 1536, 2048, 2816, 4096, 5000]
    assert contexts(1024) == [1024]
    assert contexts(100) == [100]
    ratios = [b / a for a, b in zip(contexts(1 << 20), contexts(1 << 20)[1:], strict=False)]
    assert all(1.25 < ratio < 1.55 for ratio in ratios)


@pytest.mark.parametrize(("usable_gb", "fits"), [(120, True), (90, False)])
def test_the_series_are_what_the_planner_says(usable_gb: int, fits: bool) -> None:
    asked = request(usable_gb)
    made: list[int] = []

    def plan_at(context: int) -> Placement | Refusal:
        made.append(context)
        return plan(replace(asked, context_tokens=context))

    found = curve(plan_at, plan(asked))
    assert found is not None
    assert found.last_context_tokens == 196_608
    assert found.feasible_to_the_end is fits
    assert len(made) == len(found.points) - fits  # the end was planned already where it fits
    for point in found.points:
        result = plan(replace(asked, context_tokens=point.context_tokens))
        assert isinstance(result, Placement)
        assert point.tokens_per_second == pytest.approx(1 / result.predicted_decode_seconds)
        assert point.smallest_headroom_bytes == min(s.ledger.headroom_bytes for s in result.stages) >= 0
        assert point.stage_count == len(result.stages)
    assert found.points[0].context_tokens == 1024
    assert found.points[-1].context_tokens == found.largest_context_tokens
    if not fits:
        beyond = plan(replace(asked, context_tokens=found.largest_context_tokens + 1))
        assert isinstance(beyond, Refusal)


def test_nothing_to_plot_where_no_context_fits() -> None:
    refusal = plan(request(20))
    assert curve(plan_never, refusal) is None


def plan_never(context: int) -> Placement | Refusal:
    raise AssertionError(context)


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_the_picture_is_drawn_from_the_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to load

    figures: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    points = tuple(Point(c, 100 - i, (9 - i) * GB, 2) for i, c in enumerate((1024, 2048, 3000)))
    draw(Curve(points, 8192, 3000), str(tmp_path / "p.png"), title="m on c")
    assert png_size(tmp_path / "p.png") == (1200, 900)
    speed, room = figures[0].axes
    assert figures[0].get_suptitle() == "m on c"
    assert [np.asarray(line.get_ydata()).tolist() for line in speed.lines] == [[100, 99, 98]]
    assert [np.asarray(line.get_xdata()).tolist() for line in room.lines] == [[1024, 2048, 3000]]
    assert [np.asarray(line.get_ydata()).tolist() for line in room.lines] == [[9, 8, 7]]
    for axes in (speed, room):
        (shade,) = axes.patches
        assert shade.get_extents().transformed(axes.transData.inverted()).x0 == pytest.approx(3000)
    draw(Curve(points, 3000, 3000), str(tmp_path / "p.png"), title="all of it")
    assert not figures[1].axes[0].patches


def test_the_command_writes_it(run: Run, profile_file: Path, cluster_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "plan.png"
    argv = ("plan", str(profile_file), "--cluster", str(cluster_file), "--context", "4096", "--plot")
    outcome = run(*argv, str(target))
    assert outcome.code == 0, outcome.err
    assert outcome.err == f"wrote {target}\n"
    assert png_size(target) == (1200, 900)
    outcome = run(*argv, str(tmp_path / "nowhere" / "plan.png"))
    assert outcome.code == 2
    assert "cannot write" in outcome.err


def test_without_matplotlib_the_message_says_what_to_install(
    run: Run, profile_file: Path, cluster_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = run(
        "plan", str(profile_file), "--cluster", str(cluster_file), "--plot", str(tmp_path / "p.png")
    )
    assert outcome.code == 1
    assert "python -m pip install 'macmesh[plot]'" in outcome.err
    assert outcome.out == ""
