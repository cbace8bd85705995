"""What launchctl prints and its exit codes mean. Pure.

The formats are those of macOS 13 to 26; launchctl calls them no interface, so everything that is read here
may be missing.
"""

import re
from dataclasses import dataclass

DOMAIN = "system"

#: Of `bootstrap`: already loaded, or the property list is not root's alone.
EXIT_INPUT_OUTPUT = 5
#: Of `bootout`: no such process.
EXIT_NO_PROCESS = 3
#: Of `bootout`: the job is still going down.
EXIT_IN_PROGRESS = 36
#: Of `print`, `bootout` and `kickstart`: no such service.
EXIT_NO_SERVICE = 113
#: Of `bootstrap`: the service was disabled with `launchctl disable`.
EXIT_DISABLED = 119


@dataclass(frozen=True, slots=True)
class PrintedJob:
    """What `launchctl print` says about a loaded job.

    Attributes:
        state: In launchd's words, such as "running" or "not running".
        pid: Of the running process.
        last_exit_code: In launchd's words, such as "0", "(never exited)" or "78: EX_CONFIG".
        runs: How often it was started since it was loaded.
    """

    state: str
    pid: int | None
    last_exit_code: str | None
    runs: int | None


def service_target(label: str) -> str:
    """The name by which launchctl knows a job."""
    return f"{DOMAIN}/{label}"


def parse_print(output: str) -> PrintedJob:
    """Read the answer of `launchctl print system/LABEL`.

    Only the job's own lines count: nested blocks repeat some of the names, for its endpoints for example.
    """
    values: dict[str, str] = {}
    for line in output.splitlines():
        match = re.fullmatch(r"\t([^\t=]+?) = ([^{]*)", line)
        if match:
            values.setdefault(match[1], match[2].strip())
    return PrintedJob(
        state=values.get("state", "unknown"),
        pid=_number(values.get("pid")),
        last_exit_code=values.get("last exit code"),
        runs=_number(values.get("runs")),
    )


def parse_disabled(output: str) -> frozenset[str]:
    """The labels that `launchctl print-disabled system` lists as disabled; older systems say `true`."""
    return frozenset(re.findall(r'^\s*"([^"]+)" => (?:disabled|true)\s*$', output, re.MULTILINE))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
