"""`daemonctl rdma` over a node's file."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from macmesh_daemon.cli.daemonctl import main
from macmesh_daemon.node.verbs_keeper import QUARANTINE_FILE_NAME
from macmesh_rdma.quarantine_file import add_entry, read_entries
from macmesh_rdma.verbs.boot_counts import FILE_NAME, BootCounts, boot_id, counts_text

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_node_or_all_are_lifted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / QUARANTINE_FILE_NAME
    lift = ["rdma", "lift", "--data-dir", str(tmp_path)]
    assert main(lift) == 0
    assert "no node is in quarantine" in capsys.readouterr().out
    for name in ("aaaa1", "aaaa2", "bbbb1"):
        add_entry(path, name, f"{name} hung", 1.0)
    assert main([*lift, "bbbb"]) == 0
    assert "bbbb1 is out of quarantine; it was there because bbbb1 hung" in capsys.readouterr().out
    assert sorted(read_entries(path)) == ["aaaa1", "aaaa2"]
    assert main([*lift, "bbbb"]) == 1
    capsys.readouterr()
    assert main([*lift, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "daemonctl-rdma-lift/1"
    assert told["lifted"] == {"aaaa1": "aaaa1 hung", "aaaa2": "aaaa2 hung"}
    assert read_entries(path) == {}


def test_counts_and_quarantine_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = BootCounts(asyncio.run(boot_id()), setups=3, queue_pairs_made=8, queue_pairs_freed=6)
    (tmp_path / FILE_NAME).write_bytes(counts_text(counts))
    show = ["rdma", "show", "--data-dir", str(tmp_path)]
    assert main(show) == 0
    assert capsys.readouterr().out.splitlines() == [
        "set-ups since the machine was started: 3 of 20, 8 queue pairs made, 6 freed",
        "no node is in quarantine",
    ]
    add_entry(tmp_path / QUARANTINE_FILE_NAME, "aaaa1", "it hung", 1.0)
    assert main([*show, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["setups"], told["bound"]) == ("daemonctl-rdma-show/1", 3, 20)
    assert told["quarantined"] == {"aaaa1": "it hung"}


def test_a_file_that_cannot_be_read_is_removed(tmp_path: Path) -> None:
    path = tmp_path / QUARANTINE_FILE_NAME
    path.write_text("{")
    assert main(["rdma", "lift", "--data-dir", str(tmp_path)]) == 0
    assert not path.exists()
