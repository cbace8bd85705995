"""`daemonctl cluster init`, and that client and daemon agree on the socket."""

from pathlib import Path

import pytest

from macmesh import socket_path
from macmesh_daemon.cli.connect import settings
from macmesh_daemon.identity import load_credentials

from .conftest import Run


def test_makes_a_cluster_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACMESH_SOCKET", "/nowhere/m.sock")  # a client's variable does not disturb
    folder = tmp_path / "node1"
    value = run("cluster", "init", "--data-dir", str(folder), "--json").json
    credentials = load_credentials(folder)
    assert value["format"] == "daemonctl-cluster-init/1"
    assert (value["node_id"], value["cluster"]) == (credentials.node_id, credentials.cluster_prefix)
    assert credentials.founder
    again = run("cluster", "init", "--data-dir", str(folder))
    assert again.code == 1
    assert "already belongs to cluster" in again.err
    assert load_credentials(folder).node_id == value["node_id"]


def test_for_people(run: Run, tmp_path: Path) -> None:
    outcome = run("cluster", "init", "--data-dir", str(tmp_path / "node1"))
    assert outcome.code == 0
    assert outcome.out.startswith("cluster ")
    assert "macmeshd" in outcome.err


def test_a_folder_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run("cluster", "init", "--data-dir", str(tmp_path / "file" / "below"))
    assert outcome.code == 1
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("name", ["short", "x" * 120])
def test_client_and_daemon_agree_on_the_socket(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    assert settings(str(folder)).resolved_socket_path() == socket_path(folder)
