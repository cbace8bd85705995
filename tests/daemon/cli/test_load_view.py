"""The progress of a load: lines for logs, bars for terminals."""

import re
from dataclasses import replace

import pytest

from macmesh import LoadProgress
from macmesh._messages import load_progress
from macmesh.testing import scenes
from macmesh.v1 import peer_pb2
from macmesh_daemon.cli.load_view import LiveBlock, PlainLines, fetching, stage_bars

STEPS = [load_progress(step) for step in scenes.load_steps()]
LOADING = [step for step in STEPS if step.phase == "loading"]
UP = re.compile(r"\x1b\[(\d+)A\r\x1b\[J")


def screen(texts: list[str]) -> list[str]:
    """What a terminal shows after these."""
    lines: list[str] = []
    rest = "".join(texts)
    while rest:
        if found := UP.match(rest):
            del lines[len(lines) - int(found[1]) :]
            rest = rest[found.end() :]
            continue
        line, _, rest = rest.partition("\n")
        lines.append(line)
    return lines


def test_lines_for_a_log() -> None:
    plain = PlainLines()
    told = [line for step in STEPS for line in plain.of(step)]
    assert told[:3] == ["profiling", "planning", "preparing"]
    assert [line.split(" (")[0] for line in told[4:8]] == [
        "loading",
        "loading 50%",
        "loading 100%",
        "connecting",
    ]
    assert "warm-up" in told[8]
    assert all(plain.of(step) == [] for step in STEPS[-1:])


def test_a_log_is_told_of_quarters_alone() -> None:
    plain = PlainLines()
    told = []
    for percent in range(101):
        told += plain.of(LoadProgress("loading", "1.1.1", percent * 10**9, 100 * 10**9))
    assert [line.split(" (")[0] for line in told] == [
        "loading",
        *(f"loading {n}%" for n in (25, 50, 75, 100)),
    ]


def test_a_terminal_shows_a_bar_for_each_stage_in_place() -> None:
    live = LiveBlock()
    texts = [live.of(step, 100) for step in STEPS[: STEPS.index(LOADING[1]) + 1]]
    shown = screen(texts)
    assert shown[:3] == ["profiling", "planning", "preparing"]
    assert shown[3].startswith("committed: epoch 1.3.2")
    stages = len(scenes.deployment().stages)
    assert len(shown) == 4 + stages
    for index, line in enumerate(shown[4:]):
        assert line.startswith(f"stage {index} ")
        assert line.endswith(" loads")
        assert "50%" in line
        assert abs(line.count("█") - line.count("·")) <= 1
    texts += [live.of(step, 100) for step in STEPS[STEPS.index(LOADING[1]) + 1 :]]
    shown = screen(texts)
    assert [line.rsplit(" ", 1)[1] for line in shown[4:-1]] == ["ready"] * stages
    assert shown[-1].startswith("ready: epoch 1.3.2, a1b2c3d4 load 20.0 s")


@pytest.mark.parametrize("columns", [1, 20, 40, 60, 100, 300])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    for step in LOADING:
        assert all(len(line) < max(2, columns) for line in stage_bars(step, columns))


def test_stages_are_loaded_each_at_its_own_pace_and_unknown_ones_wait() -> None:
    first, *_ = LOADING[1].workers
    bars = stage_bars(replace(LOADING[1], workers=(first,)), 100)
    assert "50%" in bars[0]
    assert bars[1].endswith("is asked to start")
    assert "%" not in bars[1]


def test_a_fetch_says_where_its_bytes_come_from() -> None:
    report = peer_pb2.WorkerReport(state=peer_pb2.WORKER_STATE_LOADING)
    assert fetching(report) == ""
    report.fetch.total_bytes = 10
    assert fetching(report) == "fetches"
    report.fetch.disk_bytes = 1_000_000
    report.fetch.peer_bytes = 2_000_000
    report.fetch.source_node_ids.extend(["a", "b"])
    assert re.fullmatch(r"fetches \(.* of the disk, .* of 2 nodes\)", fetching(report))
    first, *others = LOADING[1].workers
    told = peer_pb2.WorkerReport()
    told.CopyFrom(first)
    told.fetch.CopyFrom(report.fetch)
    bars = stage_bars(replace(LOADING[1], workers=(told, *others)), 120)
    assert bars[0].endswith(fetching(report))


def test_a_plan_that_is_made_anew_starts_below() -> None:
    live = LiveBlock()
    texts = [live.of(LOADING[1], 100), live.of(STEPS[3], 100), live.of(LOADING[0], 100)]
    shown = screen(texts)
    stages = len(scenes.deployment().stages)
    assert len(shown) == 2 * stages + 1
    assert "50%" in shown[0]
    assert shown[stages].startswith("committed")
    assert "  0%" in shown[-1]
