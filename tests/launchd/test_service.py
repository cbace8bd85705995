import os
import plistlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from macmesh_launchd import (
    Host,
    InstallOptions,
    LocalLaunchctlError,
    LocalNotMacError,
    LocalNotRootError,
    LocalOptionError,
    LocalServiceFileError,
    install,
    status,
    uninstall,
)
from macmesh_launchd.plists import DAEMON_LABEL, WIRED_LIMIT_LABEL
from macmesh_launchd.runner import Completed, SubprocessRunner
from macmesh_launchd.service import Shell
from macmesh_launchd.testing import FakeLaunchd, read_programs, write_programs

OPTIONS = InstallOptions(program=("/opt/macmesh/bin/python", "-I", "-m", "macmesh_daemon.cli.macmeshd"))
WITH_LIMIT = replace(OPTIONS, wired_limit_mb=98304)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    folders = tmp_path / "LaunchDaemons", tmp_path / "home", tmp_path / "Logs"
    for folder in folders:
        folder.mkdir()
    uid, gid = os.getuid(), os.getgid()
    return Host(
        platform="darwin",
        effective_uid=0,
        user="ann",
        uid=uid or 12345,
        gid=gid,
        home=folders[1],
        ram_bytes=128 * 2**30,
        service_owner_uid=uid,
        launch_daemons=folders[0],
        system_logs=folders[2],
    )


@pytest.fixture
def fake() -> FakeLaunchd:
    return FakeLaunchd()


@pytest.fixture
def shell(fake: FakeLaunchd) -> Shell:
    return Shell(run=fake)


def plist(host: Host, label: str = DAEMON_LABEL) -> Path:
    return host.launch_daemons / f"{label}.plist"


def test_install_makes_the_daemon_run(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    report = install(OPTIONS, host=host, shell=shell)
    written = plistlib.loads(plist(host).read_bytes())

    assert report.changed
    assert report.status.daemon.state == "running"
    assert report.status.daemon.pid == 501
    assert report.status.daemon.last_exit_code == "(never exited)"
    assert not report.status.wired_limit.installed
    assert written["ProgramArguments"] == list(OPTIONS.program)
    assert written["UserName"] == "ann"
    assert plist(host).stat().st_mode & 0o7777 == 0o644
    assert fake.changes() == [["bootstrap", "system", str(plist(host))]]
    assert (host.home / "Library" / "Logs" / "macmesh").stat().st_uid == host.uid


def test_installing_again_touches_nothing(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    install(WITH_LIMIT, host=host, shell=shell)
    calls, inode = fake.changes(), plist(host).stat().st_ino
    report = install(WITH_LIMIT, host=host, shell=shell)

    assert not report.changed
    assert report.actions == ()
    assert report.status.daemon.pid == 501
    assert fake.changes() == calls
    assert plist(host).stat().st_ino == inode


def test_changed_options_replace_the_service(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    install(OPTIONS, host=host, shell=shell)
    fake.lingering = 2
    pauses: list[float] = []
    report = install(
        replace(OPTIONS, daemon_arguments=("--listen-port", "7000")),
        host=host,
        shell=Shell(run=fake, pause=pauses.append),
    )

    assert fake.changes()[1:] == [
        ["bootout", f"system/{DAEMON_LABEL}"],
        ["bootstrap", "system", str(plist(host))],
    ]
    assert len(pauses) == 2  # the job went down slowly
    assert report.status.daemon.pid == 502


def test_the_wired_limit_is_set_before_the_daemon_starts(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    report = install(WITH_LIMIT, host=host, shell=shell)
    assert [call[-1] for call in fake.changes()] == [str(plist(host, WIRED_LIMIT_LABEL)), str(plist(host))]
    assert report.status.wired_limit_mb_at_start == report.status.wired_limit_mb_now == 98304
    assert report.status.wired_limit.last_exit_code == "0"

    kept = install(OPTIONS, host=host, shell=shell)
    assert not kept.changed
    assert kept.status.wired_limit_mb_at_start == 98304


def test_a_daemon_that_was_stopped_is_started_again(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    install(OPTIONS, host=host, shell=shell)
    fake.jobs[DAEMON_LABEL] |= {"pid": None, "exit": 0}

    assert status(host=host, shell=shell).daemon.state == "not running"
    assert install(OPTIONS, host=host, shell=shell).status.daemon.state == "running"
    assert fake.changes()[-1] == ["kickstart", f"system/{DAEMON_LABEL}"]


def test_a_disabled_service_is_enabled(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    fake.disabled = [DAEMON_LABEL]
    assert status(host=host, shell=shell).daemon.disabled
    assert install(OPTIONS, host=host, shell=shell).status.daemon.state == "running"
    assert ["enable", f"system/{DAEMON_LABEL}"] in fake.changes()


def test_an_unsafe_property_list_is_written_anew(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    install(OPTIONS, host=host, shell=shell)
    plist(host).chmod(0o666)
    assert install(OPTIONS, host=host, shell=shell).changed
    assert plist(host).stat().st_mode & 0o7777 == 0o644
    assert len(fake.changes()) == 3


def test_uninstall_leaves_no_job_and_no_file(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    install(WITH_LIMIT, host=host, shell=shell)
    report = uninstall(host=host, shell=shell)

    assert report.changed
    assert not report.status.daemon.loaded
    assert fake.jobs == {}
    assert list(host.launch_daemons.iterdir()) == []
    assert any("wired limit stays" in note for note in report.notes)
    assert not uninstall(host=host, shell=shell).changed


def test_a_job_that_goes_while_it_is_removed_is_no_error(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    install(OPTIONS, host=host, shell=shell)

    def racing(arguments: Sequence[str]) -> Completed:
        if arguments[1] == "bootout":
            fake(arguments)
        return fake(arguments)

    report = uninstall(host=host, shell=Shell(run=racing))
    assert not report.status.daemon.loaded
    assert fake.changes()[-2:] == [["bootout", f"system/{DAEMON_LABEL}"]] * 2


def test_a_job_that_does_not_go_is_an_error(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    install(OPTIONS, host=host, shell=shell)
    fake.lingering = 1000
    clock = iter(range(0, 1000, 10))
    with pytest.raises(LocalLaunchctlError, match="still holds"):
        uninstall(host=host, shell=Shell(run=fake, now=lambda: next(clock), pause=lambda _: None))


def test_a_dry_run_says_everything_and_does_nothing(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    report = install(WITH_LIMIT, dry_run=True, host=replace(host, effective_uid=501), shell=shell)
    text = "\n".join(report.actions)

    assert report.changed
    assert fake.changes() == []
    assert list(host.launch_daemons.iterdir()) == []
    assert not (host.home / "Library").exists()
    assert f"write {plist(host)} (owner {host.service_owner_uid}:0, mode 0644)" in text
    assert "<string>macmesh_daemon.cli.macmeshd</string>" in text
    assert f"run launchctl bootstrap system {plist(host)}" in text

    done = install(WITH_LIMIT, host=host, shell=shell)
    assert done.actions == report.actions


def test_without_root_the_command_is_given(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    user = replace(host, effective_uid=501)
    with pytest.raises(LocalNotRootError) as caught:
        install(OPTIONS, host=user, invocation=["/my venv/daemonctl", "service", "install"])
    assert caught.value.command == "sudo '/my venv/daemonctl' service install"
    assert caught.value.command in str(caught.value)
    with pytest.raises(LocalNotRootError):
        uninstall(host=user, shell=shell)
    assert not status(host=user, shell=shell).daemon.installed
    assert fake.changes() == []


def test_other_systems_are_told_so(host: Host) -> None:
    linux = replace(host, platform="linux")
    for call in (install, uninstall, status):
        with pytest.raises(LocalNotMacError, match="the service is for macOS, and this system is linux"):
            call(host=linux)


@pytest.mark.parametrize("limit", [0, -1, 128 * 1024 - 8 * 1024 + 1])
def test_a_wired_limit_that_starves_the_system_is_refused(
    host: Host, fake: FakeLaunchd, shell: Shell, limit: int
) -> None:
    with pytest.raises(LocalOptionError, match="choose 1 to 122880"):
        install(replace(OPTIONS, wired_limit_mb=limit), host=host, shell=shell)
    assert fake.calls == []


def test_root_is_no_user_to_install_for(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    with pytest.raises(LocalOptionError, match="through sudo"):
        install(OPTIONS, host=replace(host, uid=0, user="root"), shell=shell)
    assert fake.changes() == []


@pytest.mark.skipif(os.getuid() != 0, reason="giving a folder to root needs root")
def test_a_system_service_has_no_user(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    install(replace(OPTIONS, system=True), host=host, shell=shell)
    written = plistlib.loads(plist(host).read_bytes())
    assert "UserName" not in written
    assert written["StandardErrorPath"] == str(host.system_logs / "macmesh" / "macmeshd.err.log")
    assert fake.changes()


def test_a_refusal_of_launchctl_is_passed_on(host: Host, fake: FakeLaunchd) -> None:
    def racing(arguments: Sequence[str]) -> Completed:
        if arguments[1] == "bootstrap":  # another installer was faster
            fake(arguments)
        return fake(arguments)

    with pytest.raises(LocalLaunchctlError, match=r"bootstrap .* failed with 5: .*Input/output") as caught:
        install(OPTIONS, host=host, shell=Shell(run=racing))
    assert caught.value.exit_code == 5


def test_without_launchctl_the_error_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(host.home))
    with pytest.raises(LocalLaunchctlError, match="launchctl is not on PATH"):
        status(host=host)


def test_a_folder_that_cannot_be_written_is_named(host: Host, fake: FakeLaunchd, shell: Shell) -> None:
    missing = replace(host, launch_daemons=host.launch_daemons / "missing")
    with pytest.raises(LocalServiceFileError, match="missing"):
        install(OPTIONS, host=missing, shell=shell)
    assert fake.changes() == []


def test_this_machine_describes_itself() -> None:
    host = Host.current()
    assert host.platform == sys.platform
    assert host.ram_bytes > 2**28
    with pytest.raises(LocalOptionError, match="no user 'nobody-at-all'"):
        Host.current("nobody-at-all")


@pytest.mark.process
def test_install_and_uninstall_through_programs_on_path(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    write_programs(folder)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    assert install(WITH_LIMIT, host=host).status.daemon.state == "running"
    assert [call[0] for call in read_programs(folder).changes()] == ["bootstrap", "bootstrap"]
    assert not uninstall(host=host).status.daemon.loaded
    assert read_programs(folder).jobs == {}


@pytest.mark.process
def test_a_program_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "launchctl"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(LocalLaunchctlError, match="could not be run to its end"):
        SubprocessRunner(deadline_seconds=0.1)(("launchctl", "print", "system/x"))
