import json
from pathlib import Path

import pytest

from macmesh_launchd import Host, InstallOptions
from macmesh_launchd.launchctl import parse_disabled, parse_print
from macmesh_launchd.plan import JobState, Launchctl, plan_install, plan_uninstall
from macmesh_launchd.plists import (
    DAEMON_LABEL,
    LABELS,
    WIRED_LIMIT_LABEL,
    daemon_plist,
    encode,
    wired_limit_of,
    wired_limit_plist,
)
from macmesh_launchd.report import JobStatus, Report, StatusReport

HOST = Host(
    platform="darwin", effective_uid=0, user="ann", uid=501, gid=20, home=Path("/Users/ann"), ram_bytes=2**37
)

PRINTED = """system/dev.macmesh.macmeshd = {
	active count = 1
	path = /Library/LaunchDaemons/dev.macmesh.macmeshd.plist
	type = LaunchDaemon
	state = running

	program = /opt/macmesh/bin/python
	arguments = {
		/opt/macmesh/bin/python
		state = waiting
	}

	runs = 3
	pid = 4242
	immediate reason = inefficient
	last exit code = 78: EX_CONFIG

	endpoints = {
		state = active
		pid = 1
	}
}
"""


def test_print_is_read_from_the_jobs_own_lines() -> None:
    job = parse_print(PRINTED)
    assert (job.state, job.pid, job.last_exit_code, job.runs) == ("running", 4242, "78: EX_CONFIG", 3)


@pytest.mark.parametrize("text", ["", "garbage", "system/x = {\n\tpid = many\n}\n"])
def test_print_that_says_less_is_no_error(text: str) -> None:
    job = parse_print(text)
    assert (job.state, job.pid, job.last_exit_code) == ("unknown", None, None)


def test_disabled_labels_in_both_spellings() -> None:
    rows = '"a.b" => disabled', '"c.d" => true', '"e" => enabled', '"f" => false'
    text = "\tdisabled services = {\n\t\t" + "\n\t\t".join(rows) + "\n\t}"
    assert parse_disabled(text) == {"a.b", "c.d"}


def test_the_daemon_restarts_on_failure_only_and_is_not_throttled() -> None:
    plist = daemon_plist(InstallOptions(), HOST)
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["ProcessType"] == "Interactive"
    assert plist["RunAtLoad"]
    assert plist["EnvironmentVariables"]["HOME"] == "/Users/ann"
    assert plist["ProgramArguments"][1:] == ["-I", "-m", "macmesh_daemon.cli.macmeshd"]


def test_the_wired_limit_can_be_read_back() -> None:
    assert wired_limit_of(encode(wired_limit_plist(4096))) == 4096
    assert wired_limit_of(encode(daemon_plist(InstallOptions(), HOST))) is None
    assert wired_limit_of(b"no plist") is None


def found(loaded: str | None = None, **changes: bool) -> dict[str, JobState]:
    """The daemon as wanted, loaded or not; no wired limit."""
    job = parse_print(f"x = {{\n\tstate = {loaded}\n}}") if loaded else None
    content = encode(daemon_plist(InstallOptions(), HOST))
    return {DAEMON_LABEL: JobState(content, loaded=job, **changes), WIRED_LIMIT_LABEL: JobState()}


def commands(state: dict[str, JobState]) -> list[str]:
    return [
        action.arguments[0] if isinstance(action, Launchctl) else type(action).__name__
        for action in plan_install(InstallOptions(), HOST, state)
    ]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (found("running"), []),
        (found("spawn scheduled"), []),
        (found("not running"), ["MakeFolder", "kickstart"]),
        (found("running", disabled=True), ["MakeFolder", "enable"]),
        (found(), ["MakeFolder", "bootstrap"]),
        (found(disabled=True), ["MakeFolder", "enable", "bootstrap"]),
        (found("running", safe=False), ["MakeFolder", "bootout", "AwaitGone", "WriteFile", "bootstrap"]),
        (dict.fromkeys(LABELS, JobState()), ["MakeFolder", "WriteFile", "bootstrap"]),
    ],
)
def test_install_does_what_is_missing(state: dict[str, JobState], expected: list[str]) -> None:
    assert commands(state) == expected


def test_uninstall_of_nothing_does_nothing() -> None:
    assert plan_uninstall(HOST, dict.fromkeys(LABELS, JobState())) == []


def test_reports_are_json() -> None:
    job = JobStatus(
        label="l",
        plist="/p",
        installed=True,
        loaded=False,
        disabled=False,
        state=None,
        pid=None,
        last_exit_code=None,
        runs=None,
    )
    status = StatusReport(job, job, None, 0)
    report = Report(
        operation="install", dry_run=True, changed=True, actions=("a",), notes=("n",), status=status
    )
    assert json.loads(json.dumps(report.to_json()))["status"]["daemon"]["label"] == "l"
    assert json.loads(json.dumps(status.to_json()))["wired_limit_mb_now"] == 0
