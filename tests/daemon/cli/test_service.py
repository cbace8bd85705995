"""`daemonctl service` over the fake launchd."""

import os
from pathlib import Path

import pytest

from macmesh_daemon.cli.commands.service import status_text
from macmesh_launchd import Host, JobStatus, StatusReport
from macmesh_launchd.runner import SubprocessRunner
from macmesh_launchd.testing import FakeLaunchd

from .conftest import Run


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLaunchd:
    """A Mac whose launchd is the fake one; this process looks like root's to the service code."""
    folders = {name: tmp_path / name for name in ("home", "daemons", "logs")}
    for folder in folders.values():
        folder.mkdir()
    host = Host(
        platform="darwin",
        effective_uid=0,
        user="ann",
        uid=os.getuid() or 12345,
        gid=os.getgid(),
        home=folders["home"],
        ram_bytes=128 << 30,
        service_owner_uid=os.getuid(),
        launch_daemons=folders["daemons"],
        system_logs=folders["logs"],
    )
    fake = FakeLaunchd()
    monkeypatch.setattr(Host, "current", classmethod(lambda _cls, _user=None: host))
    monkeypatch.setattr(SubprocessRunner, "__call__", lambda _self, arguments: fake(arguments))
    return fake


def test_dry_run_install_status_uninstall(run: Run, mac: FakeLaunchd) -> None:
    dry = run("service", "install", "--dry-run")
    assert dry.code == 0
    assert "would: " in dry.out
    assert "dev.macmesh" in dry.out
    assert all(line.startswith(("would: ", "    ")) for line in dry.out.splitlines())
    assert mac.changes() == []
    assert run("service", "status").code == 3
    installed = run("service", "install")
    assert installed.code == 0, installed.err
    assert "the daemon's output goes to" in installed.err
    status = run("service", "status", "--json")
    assert status.code == 0
    assert status.json["format"] == "daemonctl-service-status/1"
    assert status.json["daemon"]["state"] == "running"
    removed = run("service", "uninstall", "--json")
    assert removed.json["format"] == "daemonctl-service-uninstall/1"
    assert removed.json["changed"] is True


def test_status_for_people() -> None:
    daemon = JobStatus("dev.macmesh.macmeshd", "/L/d.plist", True, True, False, "running", 501, "0", 2)  # noqa: FBT003  as stored
    wired = JobStatus("dev.macmesh.wired", "/L/w.plist", False, False, False, None, None, None, None)  # noqa: FBT003  as stored
    assert status_text(StatusReport(daemon, wired, 98304, 0)).splitlines() == [
        "dev.macmesh.macmeshd: running, pid 501, started 2 times, last exit code 0 (/L/d.plist)",
        "dev.macmesh.wired: not installed",
        "iogpu.wired_limit_mb: the default of macOS",
        "iogpu.wired_limit_mb at every start: 98304",
    ]


def test_options_that_cannot_be(run: Run, mac: FakeLaunchd) -> None:
    outcome = run("service", "install", "--wired-limit-mb", "131072", "--json")
    assert outcome.code == 2
    assert outcome.json["error"]["reason"] == "INVALID_ARGUMENT"
    assert mac.changes() == []


def test_without_launchd(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for command in (("install",), ("install", "--dry-run"), ("uninstall",), ("status",)):
        outcome = run("service", *command)
        assert outcome.code == 1
        assert "the service is for macOS" in outcome.err
