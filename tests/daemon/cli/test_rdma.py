"""`daemonctl rdma lift` over a node's file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from macmesh_daemon.cli.daemonctl import main
from macmesh_daemon.node.verbs_keeper import QUARANTINE_FILE_NAME
from macmesh_rdma.quarantine_file import add_entry, read_entries

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


def test_a_file_that_cannot_be_read_is_removed(tmp_path: Path) -> None:
    path = tmp_path / QUARANTINE_FILE_NAME
    path.write_text("{")
    assert main(["rdma", "lift", "--data-dir", str(tmp_path)]) == 0
    assert not path.exists()
