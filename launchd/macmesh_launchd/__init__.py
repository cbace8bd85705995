"""The macOS service: launchd property lists, install, uninstall, status.

    from macmesh_launchd import InstallOptions, install

    report = install(InstallOptions(wired_limit_mb=98304), dry_run=True)

Plans are made by pure functions (`plan`); `service` looks at the machine and carries them out with launchctl.
"""

from macmesh_launchd.errors import (
    LaunchdError,
    LocalLaunchctlError,
    LocalNotMacError,
    LocalNotRootError,
    LocalOptionError,
    LocalServiceFileError,
)
from macmesh_launchd.host import Host
from macmesh_launchd.options import InstallOptions
from macmesh_launchd.report import JobStatus, Report, StatusReport
from macmesh_launchd.service import install, status, uninstall

__all__ = [
    "Host",
    "InstallOptions",
    "JobStatus",
    "LaunchdError",
    "LocalLaunchctlError",
    "LocalNotMacError",
    "LocalNotRootError",
    "LocalOptionError",
    "LocalServiceFileError",
    "Report",
    "StatusReport",
    "install",
    "status",
    "uninstall",
]
