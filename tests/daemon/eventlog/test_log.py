"""Writing and reading: order, rotation, kills in the middle of a line, full disks."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING, Any

import pytest

from macmesh_daemon.clock import ManualClock
from macmesh_daemon.eventlog import Kind, LocalEventLogDamaged, writer
from macmesh_daemon.eventlog.history import History
from macmesh_daemon.eventlog.reader import log_files, read_logs
from macmesh_daemon.eventlog.writer import EventLog
from support.virtual_loop import run_virtual

if TYPE_CHECKING:
    from pathlib import Path


def make(folder: Path, incarnation: int = 1, **settings: Any) -> EventLog:
    return EventLog(
        folder / "events",
        node_id="n",
        incarnation=incarnation,
        clock=ManualClock(),
        wall_seconds=lambda: 1_700_000_000.5,
        **settings,
    )


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.record(Kind.STARTED, boot_nonce=7, ballot=[0, 0])
    log.record(Kind.DELIVERED, request="r", index=3, count=2)
    assert log.waiting == 2
    log.close()
    assert log.waiting == 0
    first, second = read_logs([tmp_path])
    assert (first.node, first.incarnation, first.seq, first.kind) == ("n", 1, 1, Kind.STARTED)
    assert (first.wall, first.mono) == (1_700_000_000.5, 1000.0)
    assert dict(second.facts) == {"request": "r", "index": 3, "count": 2}
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700


def test_old_files_are_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    log = make(tmp_path, file_bytes=1000, files=3)
    for number in range(60):
        log.record(Kind.DELIVERED, request="r", index=number, count=1)
        if number % 7 == 0:
            log.flush()
    log.close()
    files = log_files(tmp_path)
    assert [path.name for path in files] == ["events.jsonl.2", "events.jsonl.1", "events.jsonl"]
    assert sum(path.stat().st_size for path in files) < 3 * 1200
    seqs = [record.seq for record in read_logs([tmp_path])]
    assert seqs == list(range(seqs[0], 61))
    assert seqs[0] > 1
    assert History.of(read_logs([tmp_path])).gaps


def test_a_line_torn_by_a_kill_is_passed_over_and_mended_by_the_next_start(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.record(Kind.STARTED)
    log.record(Kind.LOCAL, local_seq=1)
    log.close()
    log.path.write_bytes(log.path.read_bytes()[:-20])
    assert [record.kind for record in read_logs([tmp_path])] == [Kind.STARTED]
    again = make(tmp_path, incarnation=2)
    again.record(Kind.STARTED)
    again.close()
    assert [(r.incarnation, r.kind) for r in read_logs([tmp_path])] == [(1, Kind.STARTED), (2, Kind.STARTED)]


@pytest.mark.parametrize("line", ["hello", '{"v":99,"kind":"started"}', '{"v":1,"kind":"started"}', "[]"])
def test_a_file_that_is_no_log_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(LocalEventLogDamaged, match="line 1"):
        read_logs([path])


def test_a_folder_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        read_logs([tmp_path])


def test_a_full_disk_costs_only_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = writer._append_whole
    is_full = True

    def append(file: Any, block: bytes) -> None:
        if is_full:
            raise OSError(28, "No space left on device")
        real(file, block)

    monkeypatch.setattr(writer, "_append_whole", append)
    log = make(tmp_path, pending=3)
    for number in range(5):
        log.record(Kind.LOCAL, local_seq=number)
        log.flush()
    assert log.waiting == 3
    is_full = False
    log.flush()
    log.record(Kind.LOCAL, local_seq=9)
    log.close()
    records = read_logs([tmp_path])
    assert [r.facts.get("local_seq") for r in records if r.kind == Kind.LOCAL] == [0, 1, 2, 9]
    [lost] = [r for r in records if r.kind == Kind.LOST]
    assert lost.facts["count"] == 2
    assert History.of(records).gaps


def test_the_log_writes_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        log = make(tmp_path)
        task = asyncio.create_task(log.run())
        for number in range(3):
            log.record(Kind.LOCAL, local_seq=number)
            await asyncio.sleep(1)
            assert len(read_logs([tmp_path])) == number + 1
        task.cancel()
        await asyncio.wait([task])
        log.close()

    run_virtual(main())


def test_a_fact_cannot_take_the_place_of_what_every_record_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seq"):
        make(tmp_path).record(Kind.LOCAL, seq=1)
