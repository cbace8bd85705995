"""Install, remove and look at the service: the thin shell around `plan`."""

import os
import shlex
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from macmesh_launchd import launchctl, plists
from macmesh_launchd.errors import (
    LocalLaunchctlError,
    LocalNotMacError,
    LocalNotRootError,
    LocalServiceFileError,
)
from macmesh_launchd.host import Host
from macmesh_launchd.options import InstallOptions
from macmesh_launchd.plan import (
    PLIST_MODE,
    Action,
    AwaitGone,
    JobState,
    Launchctl,
    MakeFolder,
    RemoveFile,
    WriteFile,
    plan_install,
    plan_uninstall,
)
from macmesh_launchd.report import JobStatus, Report, StatusReport
from macmesh_launchd.runner import Completed, Runner, SubprocessRunner

_POLL_SECONDS = 0.25
#: Longer than the daemon's ExitTimeOut, after which launchd kills it.
_GONE_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Shell:
    """The edges of this package; tests bring their own.

    Attributes:
        run: Runs launchctl and sysctl.
        now: Seconds of a clock that never goes back.
        pause: Waits so many seconds.
    """

    run: Runner = field(default_factory=SubprocessRunner)
    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


def install(
    options: InstallOptions | None = None,
    *,
    dry_run: bool = False,
    host: Host | None = None,
    shell: Shell | None = None,
    invocation: Sequence[str] | None = None,
) -> Report:
    """Make the service run, now and at every start. Doing it again changes nothing and interrupts nothing.

    Args:
        options: What to install.
        dry_run: Only say what would be done; needs no root.
        host: The machine; this one by default.
        shell: How programs are run.
        invocation: The user's command, to be repeated with sudo in an error; that of this process by default.

    Raises:
        LocalNotMacError: This system has no launchd.
        LocalNotRootError: Root is needed; the error carries the command.
        LocalOptionError: The options cannot be.
        LocalServiceFileError: A file or folder could not be written.
        LocalLaunchctlError: launchctl refused.
    """
    options, host, shell = options or InstallOptions(), host or Host.current(), shell or Shell()
    _check_mac(host)
    if not dry_run:
        _check_root(host, "install", invocation)
    options.validate(host)
    found = _look(host, shell)
    actions = plan_install(options, host, found)
    notes = [f"the daemon's output goes to {plists.log_folder(options, host)}"]
    return _carry_out("install", actions, notes, dry_run=dry_run, host=host, shell=shell)


def uninstall(
    *,
    dry_run: bool = False,
    host: Host | None = None,
    shell: Shell | None = None,
    invocation: Sequence[str] | None = None,
) -> Report:
    """Stop the service and remove its property lists. Doing it again changes nothing; data and logs stay.

    Args and errors are those of `install`.
    """
    host, shell = host or Host.current(), shell or Shell()
    _check_mac(host)
    if not dry_run:
        _check_root(host, "uninstall", invocation)
    found = _look(host, shell)
    actions = plan_uninstall(host, found)
    notes = ["the data folder and the logs stay; remove them by hand if nothing of the node shall be kept"]
    if found[plists.WIRED_LIMIT_LABEL].content is not None:
        notes.append("the wired limit stays as it is until the machine starts again")
    return _carry_out("uninstall", actions, notes, dry_run=dry_run, host=host, shell=shell)


def status(*, host: Host | None = None, shell: Shell | None = None) -> StatusReport:
    """The service as it is; needs no root.

    Raises:
        LocalNotMacError: This system has no launchd.
        LocalServiceFileError: A property list cannot be read.
        LocalLaunchctlError: launchctl did not answer.
    """
    host, shell = host or Host.current(), shell or Shell()
    _check_mac(host)
    return _status(host, shell, _look(host, shell))


def _check_mac(host: Host) -> None:
    if host.platform != "darwin":
        raise LocalNotMacError(
            f"the service is for macOS, and this system is {host.platform}; run macmeshd under the system's"
            " own service manager"
        )


def _check_root(host: Host, operation: str, invocation: Sequence[str] | None) -> None:
    if host.effective_uid != 0:
        command = shlex.join(["sudo", *(sys.argv if invocation is None else invocation)])
        raise LocalNotRootError(f"to {operation} the service needs root; run: {command}", command)


def _look(host: Host, shell: Shell) -> dict[str, JobState]:
    disabled = shell.run(("launchctl", "print-disabled", launchctl.DOMAIN))
    labels = launchctl.parse_disabled(disabled.stdout) if disabled.exit_code == 0 else frozenset()
    found = {}
    for label in plists.LABELS:
        content, safe = _read(plists.plist_path(label, host), host)
        found[label] = JobState(content, safe, _print(label, shell), disabled=label in labels)
    return found


def _read(path: Path, host: Host) -> tuple[bytes | None, bool]:
    """The content and whether launchd would accept the file's owner and mode."""
    try:
        facts = path.lstat()
        content = path.read_bytes()
    except FileNotFoundError:
        return None, True
    except OSError as error:
        raise LocalServiceFileError(
            f"{path} cannot be read: {error}; correct its mode or remove it"
        ) from error
    return (
        content,
        facts.st_uid == host.service_owner_uid
        and stat.S_IMODE(facts.st_mode) == PLIST_MODE
        and not path.is_symlink(),
    )


def _print(label: str, shell: Shell) -> launchctl.PrintedJob | None:
    target = launchctl.service_target(label)
    answer = shell.run(("launchctl", "print", target))
    if answer.exit_code == launchctl.EXIT_NO_SERVICE:
        return None
    if answer.exit_code != 0:
        raise _refused(("print", target), answer)
    return launchctl.parse_print(answer.stdout)


def _carry_out(
    operation: str,
    actions: Sequence[Action],
    notes: Sequence[str],
    *,
    dry_run: bool,
    host: Host,
    shell: Shell,
) -> Report:
    if not dry_run:
        for action in actions:
            _perform(action, shell)
    return Report(
        operation=operation,
        dry_run=dry_run,
        changed=bool(actions),
        actions=tuple(action.describe() for action in actions),
        notes=tuple(notes),
        status=_status(host, shell, _look(host, shell)),
    )


def _perform(action: Action, shell: Shell) -> None:
    match action:
        case Launchctl(arguments, accepted):
            answer = shell.run(("launchctl", *arguments))
            if answer.exit_code != 0 and answer.exit_code not in accepted:
                raise _refused(arguments, answer)
        case AwaitGone(label):
            deadline = shell.now() + _GONE_DEADLINE_SECONDS
            while _print(label, shell) is not None:
                if shell.now() >= deadline:
                    raise LocalLaunchctlError(
                        f"launchd still holds {label} after {_GONE_DEADLINE_SECONDS:.0f} s;"
                        f" look at `launchctl print {launchctl.service_target(label)}` and try again"
                    )
                # launchd tells nobody when a job is gone, so it is asked again.
                shell.pause(_POLL_SECONDS)
        case MakeFolder() | WriteFile() | RemoveFile():
            try:
                _change_files(action)
            except OSError as error:
                raise LocalServiceFileError(
                    f"{action.path}: {error.strerror or error}; correct it and try again"
                ) from error


def _change_files(action: MakeFolder | WriteFile | RemoveFile) -> None:
    match action:
        case MakeFolder(path, uid, gid, mode):
            missing = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            for folder in missing:
                folder.chmod(mode)
                os.chown(folder, uid, gid)
        case WriteFile(path, content, uid, gid, mode):
            _replace(path, content, uid, gid, mode)
        case RemoveFile(path):
            path.unlink(missing_ok=True)


def _replace(path: Path, content: bytes, uid: int, gid: int, mode: int) -> None:
    """The old file or the new one, never half of one: launchd reads the folder at every start."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            os.fchown(descriptor, uid, gid)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _refused(arguments: Sequence[str], answer: Completed) -> LocalLaunchctlError:
    said = (answer.stderr or answer.stdout).strip() or "no reason given"
    hint = {
        launchctl.EXIT_INPUT_OUTPUT: "it is loaded already, or its file is not root's alone (mode 0644)",
        launchctl.EXIT_DISABLED: "the service is disabled: run `launchctl enable` for it",
    }.get(answer.exit_code, "look into Console for messages of launchd")
    return LocalLaunchctlError(
        f"launchctl {' '.join(arguments)} failed with {answer.exit_code}: {said}; {hint}", answer.exit_code
    )


def _status(host: Host, shell: Shell, found: Mapping[str, JobState]) -> StatusReport:
    wired = found[plists.WIRED_LIMIT_LABEL].content
    now = shell.run(("sysctl", "-n", "iogpu.wired_limit_mb"))
    value = now.stdout.strip()
    return StatusReport(
        daemon=_job_status(plists.DAEMON_LABEL, host, found),
        wired_limit=_job_status(plists.WIRED_LIMIT_LABEL, host, found),
        wired_limit_mb_at_start=None if wired is None else plists.wired_limit_of(wired),
        wired_limit_mb_now=int(value) if now.exit_code == 0 and value.isdecimal() else None,
    )


def _job_status(label: str, host: Host, found: Mapping[str, JobState]) -> JobStatus:
    state = found[label]
    job = state.loaded
    return JobStatus(
        label=label,
        plist=str(plists.plist_path(label, host)),
        installed=state.content is not None,
        loaded=job is not None,
        disabled=state.disabled,
        state=job.state if job else None,
        pid=job.pid if job else None,
        last_exit_code=job.last_exit_code if job else None,
        runs=job.runs if job else None,
    )
