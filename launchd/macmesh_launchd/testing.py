"""A launchctl and a sysctl for tests, with the formats and exit codes of macOS.

`FakeLaunchd` answers in the test's own process, as a `Runner`. `write_programs` puts the same behind two
programs for PATH, whose state is a file beside them.
"""

import json
import plistlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from macmesh_launchd.launchctl import EXIT_DISABLED, EXIT_INPUT_OUTPUT, EXIT_NO_PROCESS, EXIT_NO_SERVICE
from macmesh_launchd.runner import Completed

_STATE = "state.json"
_USAGE = 64


@dataclass(slots=True)
class FakeLaunchd:
    """launchd's memory, and the programs that ask it.

    Attributes:
        jobs: The loaded jobs by label: path, arguments, runs, pid, exit, and `going` while a job goes down.
        disabled: Labels that may not be loaded.
        wired_limit_mb: What sysctl knows; None on a machine without the setting.
        lingering: How many times a job is still seen by `print` after `bootout`.
        next_pid: Of the next process.
        calls: The arguments of every call of launchctl.
    """

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    disabled: list[str] = field(default_factory=list)
    wired_limit_mb: int | None = 0
    lingering: int = 0
    next_pid: int = 501
    calls: list[list[str]] = field(default_factory=list)

    def __call__(self, arguments: Sequence[str]) -> Completed:
        """Be a `Runner`."""
        program, *rest = arguments
        return self._launchctl(rest) if program == "launchctl" else self._sysctl(rest)

    def changes(self) -> list[list[str]]:
        """The calls of launchctl so far that were no questions."""
        return [call for call in self.calls if not call[0].startswith("print")]

    def _launchctl(self, arguments: list[str]) -> Completed:
        self.calls.append(arguments)
        verb, target = arguments[0], arguments[-1].removeprefix("system/")
        if arguments[1:-1] not in ([], ["system"]):
            verb = "?"
        verbs = {
            "bootstrap": self._bootstrap,
            "bootout": self._bootout,
            "enable": self._enable,
            "kickstart": self._kickstart,
            "print": self._print,
            "print-disabled": self._print_disabled,
        }
        if verb not in verbs:
            return Completed(_USAGE, "", f"Unrecognized subcommand: {' '.join(arguments)}\n")
        return verbs[verb](target)

    def _bootstrap(self, target: str) -> Completed:
        path = Path(target)
        refused = Completed(
            EXIT_INPUT_OUTPUT,
            "",
            "Bootstrap failed: 5: Input/output error\n"
            "Try re-running the command as root for richer errors.\n",
        )
        try:
            plist = plistlib.loads(path.read_bytes())
            label = plist["Label"]
        except (OSError, plistlib.InvalidFileException, KeyError):
            return refused
        if label in self.disabled:
            return Completed(EXIT_DISABLED, "", f"Bootstrap failed: {EXIT_DISABLED}: Service is disabled\n")
        if label in self.jobs or path.stat().st_mode & 0o022 or path.name != f"{label}.plist":
            return refused
        job = {"path": target, "arguments": plist["ProgramArguments"], "runs": 0, "pid": None, "exit": None}
        self.jobs[label] = job
        if plist.get("RunAtLoad"):
            self._start(job)
        return Completed(0, "", "")

    def _start(self, job: dict[str, Any]) -> None:
        job["runs"] += 1
        name, _, value = job["arguments"][-1].partition("=")
        if name == "iogpu.wired_limit_mb":
            self.wired_limit_mb = int(value)
            job["exit"] = 0
            return
        job["pid"] = self.next_pid
        self.next_pid += 1

    def _bootout(self, label: str) -> Completed:
        if label not in self.jobs:
            return Completed(EXIT_NO_PROCESS, "", "Boot-out failed: 3: No such process\n")
        if self.lingering:
            self.jobs[label]["going"] = self.lingering
        else:
            del self.jobs[label]
        return Completed(0, "", "")

    def _enable(self, label: str) -> Completed:
        self.disabled = [other for other in self.disabled if other != label]
        return Completed(0, "", "")

    def _kickstart(self, label: str) -> Completed:
        if label not in self.jobs:
            return _unknown(label)
        if self.jobs[label]["pid"] is None:
            self._start(self.jobs[label])
        return Completed(0, "", "")

    def _print(self, label: str) -> Completed:
        job = self.jobs.get(label)
        if job is None:
            return _unknown(label)
        if "going" in job:
            job["going"] -= 1
            if job["going"] <= 0:
                del self.jobs[label]
        return Completed(0, _printed(label, job), "")

    def _print_disabled(self, _: str) -> Completed:
        rows = {"com.apple.ftpd": "disabled", "com.apple.smbd": "enabled"}
        rows |= dict.fromkeys(self.disabled, "disabled")
        lines = "\n".join(f'\t\t"{label}" => {word}' for label, word in rows.items())
        return Completed(0, f"\n\tdisabled services = {{\n{lines}\n\t}}\n", "")

    def _sysctl(self, arguments: list[str]) -> Completed:
        if arguments != ["-n", "iogpu.wired_limit_mb"] or self.wired_limit_mb is None:
            return Completed(1, "", f"sysctl: unknown oid '{arguments[-1]}'\n")
        return Completed(0, f"{self.wired_limit_mb}\n", "")


def write_programs(folder: Path) -> None:
    """Write the programs `launchctl` and `sysctl` into a folder, with nothing loaded."""
    for name in ("launchctl", "sysctl"):
        program = folder / name
        command = shlex.join([sys.executable, "-m", __name__, str(folder), name])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    (folder / _STATE).write_text(json.dumps(asdict(FakeLaunchd())), encoding="utf-8")


def read_programs(folder: Path) -> FakeLaunchd:
    """What the programs in a folder know by now."""
    return FakeLaunchd(**json.loads((folder / _STATE).read_text(encoding="utf-8")))


def _unknown(label: str) -> Completed:
    message = f'Bad request.\nCould not find service "{label}" in domain for system\n'
    return Completed(EXIT_NO_SERVICE, "", message)


def _printed(label: str, job: dict[str, Any]) -> str:
    running = job["pid"] is not None
    pid = f"\tpid = {job['pid']}\n" if running else ""
    arguments = "\n".join(f"\t\t{argument}" for argument in job["arguments"])
    exit_code = "(never exited)" if job["exit"] is None else job["exit"]
    return (
        f"system/{label} = {{\n\tactive count = {int(running)}\n\tpath = {job['path']}\n"
        f"\ttype = LaunchDaemon\n\tstate = {'running' if running else 'not running'}\n\n"
        f"\tprogram = {job['arguments'][0]}\n\targuments = {{\n{arguments}\n\t}}\n\n"
        "\tdefault environment = {\n\t\tPATH => /usr/bin:/bin:/usr/sbin:/sbin\n\t}\n\n"
        f"\tdomain = system\n\tminimum runtime = 5\n\texit timeout = 20\n\truns = {job['runs']}\n{pid}"
        f"\tlast exit code = {exit_code}\n\n"
        "\tendpoints = {\n\t\tstate = active\n\t\tpid = 1\n\t}\n\n"
        "\tspawn type = interactive (4)\n\tproperties = runatload | inferred program\n}\n"
    )


def main(arguments: Sequence[str]) -> int:
    """Be one of the programs."""
    folder = Path(arguments[0])
    fake = read_programs(folder)
    answer = fake(arguments[1:])
    (folder / _STATE).write_text(json.dumps(asdict(fake)), encoding="utf-8")
    sys.stdout.write(answer.stdout)
    sys.stderr.write(answer.stderr)
    return answer.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
