"""What to do to install or remove the service. Pure: `(wanted, found) -> actions`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from macmesh_launchd import launchctl, plists
from macmesh_launchd.host import Host
from macmesh_launchd.options import InstallOptions

PLIST_MODE = 0o644
LOG_FOLDER_MODE = 0o755


@dataclass(frozen=True, slots=True)
class JobState:
    """What was found about one job.

    Attributes:
        content: The property list's bytes; None where the file is absent.
        safe: The file is the service owner's and nobody else may write it; launchd refuses others.
        loaded: What launchd says about it; None where it is not loaded.
        disabled: launchd was told not to load it.
    """

    content: bytes | None = None
    safe: bool = True
    loaded: launchctl.PrintedJob | None = None
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """Make a folder that may be there already; a new one gets this owner."""

    path: Path
    uid: int
    gid: int
    mode: int

    def describe(self) -> str:
        """One line for people."""
        return f"make folder {self.path} (owner {self.uid}:{self.gid}, mode {self.mode:04o})"


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Replace a file in one step, with root's ownership."""

    path: Path
    content: bytes
    uid: int
    gid: int
    mode: int

    def describe(self) -> str:
        """One line for people, and the content."""
        return (
            f"write {self.path} (owner {self.uid}:{self.gid}, mode {self.mode:04o}):\n"
            f"{self.content.decode(errors='replace').rstrip()}"
        )


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Remove a file that may be gone already."""

    path: Path

    def describe(self) -> str:
        """One line for people."""
        return f"remove {self.path}"


@dataclass(frozen=True, slots=True)
class Launchctl:
    """Run launchctl.

    Attributes:
        arguments: After `launchctl`.
        accepted: Exit codes besides 0 that mean that the goal is reached.
    """

    arguments: tuple[str, ...]
    accepted: tuple[int, ...] = ()

    def describe(self) -> str:
        """One line for people."""
        return f"run launchctl {' '.join(self.arguments)}"


@dataclass(frozen=True, slots=True)
class AwaitGone:
    """Wait until launchd no longer knows a job: a stopping daemon may take its ExitTimeOut."""

    label: str

    def describe(self) -> str:
        """One line for people."""
        return f"wait until launchd has let go of {self.label}"


Action = MakeFolder | WriteFile | RemoveFile | Launchctl | AwaitGone


def plan_install(options: InstallOptions, host: Host, found: Mapping[str, JobState]) -> list[Action]:
    """The actions that make the wanted service run; none where it does.

    A job whose property list is right and which is loaded is not touched, so that installing again does not
    interrupt it.

    Args:
        options: What is wanted; validated before.
        host: The machine.
        found: The state of each of `plists.LABELS`.
    """
    owner = (0, 0) if options.system else (host.uid, host.gid)
    folder = MakeFolder(plists.log_folder(options, host), *owner, LOG_FOLDER_MODE)
    wanted = {plists.DAEMON_LABEL: plists.encode(plists.daemon_plist(options, host))}
    if options.wired_limit_mb is not None:
        # First, so that the daemon reads the raised limit when it starts.
        wanted = {
            plists.WIRED_LIMIT_LABEL: plists.encode(plists.wired_limit_plist(options.wired_limit_mb)),
            **wanted,
        }
    actions: list[Action] = []
    for label, content in wanted.items():
        job = _install_job(label, content, host, found[label])
        if job and label == plists.DAEMON_LABEL:
            actions.append(folder)
        actions += job
    return actions


def plan_uninstall(host: Host, found: Mapping[str, JobState]) -> list[Action]:
    """The actions that leave no job and no property list behind; data and logs stay."""
    actions: list[Action] = []
    for label in plists.LABELS:
        state = found[label]
        if state.loaded is not None:
            actions += _unload(label)
        if state.content is not None:
            actions.append(RemoveFile(plists.plist_path(label, host)))
    return actions


def _install_job(label: str, content: bytes, host: Host, state: JobState) -> list[Action]:
    path = plists.plist_path(label, host)
    target = launchctl.service_target(label)
    enable: list[Action] = [Launchctl(("enable", target))] if state.disabled else []
    if state.content == content and state.safe and state.loaded is not None:
        stopped = label == plists.DAEMON_LABEL and state.loaded.state == "not running"
        return [*enable, Launchctl(("kickstart", target))] if stopped else enable
    actions: list[Action] = []
    if state.loaded is not None:
        actions += _unload(label)
    if state.content != content or not state.safe:
        actions.append(WriteFile(path, content, host.service_owner_uid, 0, PLIST_MODE))
    return [*actions, *enable, Launchctl(("bootstrap", launchctl.DOMAIN, str(path)))]


def _unload(label: str) -> Sequence[Action]:
    gone = (launchctl.EXIT_NO_PROCESS, launchctl.EXIT_NO_SERVICE, launchctl.EXIT_IN_PROGRESS)
    return [Launchctl(("bootout", launchctl.service_target(label)), accepted=gone), AwaitGone(label)]
