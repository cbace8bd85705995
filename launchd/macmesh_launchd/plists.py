"""The property lists. Pure."""

import plistlib
from pathlib import Path
from typing import Any

from macmesh_launchd.host import Host
from macmesh_launchd.options import InstallOptions

DAEMON_LABEL = "dev.macmesh.macmeshd"
WIRED_LIMIT_LABEL = "dev.macmesh.wired-limit"
LABELS = (DAEMON_LABEL, WIRED_LIMIT_LABEL)

_WIRED_LIMIT_KEY = "iogpu.wired_limit_mb"


def plist_path(label: str, host: Host) -> Path:
    """Where the property list lies; launchd wants the label as the file's name."""
    return host.launch_daemons / f"{label}.plist"


def log_folder(options: InstallOptions, host: Host) -> Path:
    """Where the daemon's output goes."""
    return (host.system_logs if options.system else host.home / "Library" / "Logs") / "macmesh"


def daemon_plist(options: InstallOptions, host: Host) -> dict[str, Any]:
    """The LaunchDaemon of `macmeshd`.

    launchd restarts it when it fails and leaves it down when it ends with 0. Interactive: without a process
    type launchd throttles processor and disk, which would look like a slow node.
    """
    logs = log_folder(options, host)
    home = Path("/var/root") if options.system else host.home
    plist: dict[str, Any] = {
        "Label": DAEMON_LABEL,
        "ProgramArguments": [*options.program, *options.daemon_arguments],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 5,
        # Seconds between SIGTERM and SIGKILL; the daemon needs at most ten to stop in order.
        "ExitTimeOut": 20,
        "ProcessType": "Interactive",
        "EnableTransactions": False,
        "SoftResourceLimits": {"NumberOfFiles": 8192},
        "HardResourceLimits": {"NumberOfFiles": 65536},
        "WorkingDirectory": str(home),
        "EnvironmentVariables": {"HOME": str(home), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        "StandardOutPath": str(logs / "macmeshd.out.log"),
        "StandardErrorPath": str(logs / "macmeshd.err.log"),
    }
    if not options.system:
        plist |= {"UserName": host.user, "InitGroups": True}
    return plist


def wired_limit_plist(limit_mb: int) -> dict[str, Any]:
    """The one-shot that raises the memory the GPU may wire; macOS forgets it at every start."""
    return {
        "Label": WIRED_LIMIT_LABEL,
        "ProgramArguments": ["/usr/sbin/sysctl", f"{_WIRED_LIMIT_KEY}={limit_mb}"],
        "RunAtLoad": True,
        "LaunchOnlyOnce": True,
    }


def wired_limit_of(plist: bytes) -> int | None:
    """The limit that an installed one-shot sets; None where it cannot be told."""
    try:
        setting = str(plistlib.loads(plist)["ProgramArguments"][-1])
        key, _, value = setting.partition("=")
        return int(value) if key == _WIRED_LIMIT_KEY else None
    except (plistlib.InvalidFileException, ValueError, KeyError, IndexError, TypeError):
        return None


def encode(plist: dict[str, Any]) -> bytes:
    """The file's content; equal lists give equal bytes."""
    return plistlib.dumps(plist, fmt=plistlib.FMT_XML, sort_keys=False)
