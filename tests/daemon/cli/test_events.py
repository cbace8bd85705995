"""`daemonctl events` over logs on disk."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from macmesh_daemon.cli.commands.events import _records, as_line
from macmesh_daemon.cli.daemonctl import main
from macmesh_daemon.clock import ManualClock
from macmesh_daemon.eventlog import Kind, Record
from macmesh_daemon.eventlog.writer import EventLog

if TYPE_CHECKING:
    from pathlib import Path

NODE = "hybh6esgsu5xhco54knzpikymi"


def log_of(folder: Path, node: str = NODE, wall: float | None = None, **settings: Any) -> EventLog:
    return EventLog(
        folder / "events",
        node_id=node,
        incarnation=1,
        clock=ManualClock(),
        wall_seconds=lambda: time.time() if wall is None else wall,
        **settings,
    )


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two nodes that led the same term."""
    for name, node, wall in (("a", NODE, None), ("b", "b" * 26, 1_000_000.0)):
        log = log_of(tmp_path / name, node, wall)
        log.record(Kind.LEADS, ballot=[1, 4], stored=[1, 3, 2])
        log.record(Kind.ANNOUNCED, event="member dead", facts={"node_id": NODE, "before": "suspect"})
        log.close()
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_records_are_shown_in_order_of_time(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["bbbbbbbb/1#1" in line for line in lines] == [True, False, False, False]
    assert "leads  ballot=1.4  stored=1.3.2" in lines[0]
    assert "member dead  node_id=hybh6esg  before=suspect" in lines[1]


@pytest.mark.parametrize("choice", [["--since", "1h"], ["--node", "hyb"]])
def test_age_and_node_choose(
    choice: list[str], folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["events", *folders, *choice, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {record["node"] for record in records} == {NODE}
    assert records[0]["format"] == "daemonctl-events/1"
    assert records[0]["facts"]["ballot"] == [1, 4]


def test_a_broken_invariant_is_an_exit_code(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", "--check", folders[0]]) == 0
    assert "every invariant holds" in capsys.readouterr().out
    assert main(["events", "--check", *folders]) == 1
    assert "invariant 1: two coordinators of term 1.4 [bbbbbbbb/1#1, hybh6esg/1#1]" in capsys.readouterr().out
    assert main(["events", "--check", *folders, "--json"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert (body["ok"], body["violations"][0]["invariant"], body["nodes"]) == (False, 1, 2)


def test_what_is_missing_or_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", str(tmp_path)]) == 1
    assert "no event log" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["events", "--since", "soon"])
    assert "no age" in capsys.readouterr().err


def test_following_brings_what_is_written_later(tmp_path: Path) -> None:
    # Every other record begins a file: what is put aside meanwhile is neither lost nor told twice.
    log = log_of(tmp_path, file_bytes=200)
    log.record(Kind.STARTED)
    log.flush()
    pauses = 0

    def pause(_seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses % 2:
            log.record(Kind.LOCAL, local_seq=pauses)
            log.flush()

    records = _records([tmp_path], follow=True, pause=pause)
    assert next(records).kind == Kind.STARTED
    assert [next(records).facts["local_seq"] for _ in range(6)] == [1, 3, 5, 7, 9, 11]
    log.close()


def test_control_characters_of_other_machines_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in as_line(Record("n", 1, 1, 0.0, 0.0, Kind.FAILED, {"error": "\x1b[2J"}))
