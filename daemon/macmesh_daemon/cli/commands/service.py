"""`daemonctl service`: the launchd service of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, talk
from macmesh_daemon.cli.parsers import add_command, add_group, positive

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from macmesh_daemon.cli.parsers import Subparsers
    from macmesh_launchd import JobStatus, Report, StatusReport

_EXAMPLES = """
sudo daemonctl service install                              run macmeshd now and at every start
daemonctl service install --dry-run                         only say what would be done
sudo daemonctl service install --wired-limit-mb 120000      also raise what the GPU may wire
sudo daemonctl service uninstall                            stop it and remove it; data and logs stay
daemonctl service status                                    the service as launchd sees it
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    group = add_group(
        subparsers,
        "service",
        summary="install, remove or look at the service of this machine",
        examples=_EXAMPLES,
    )
    install = _add(group, "install", "run macmeshd now and at every start", run_install)
    install.add_argument("--system", action="store_true", help="run as root with root's folders")
    install.add_argument("--user", metavar="NAME", help="who owns the daemon (default: the user behind sudo)")
    install.add_argument(
        "--wired-limit-mb",
        type=positive,
        metavar="MB",
        help="set iogpu.wired_limit_mb at every start (default: as it is)",
    )
    uninstall = _add(group, "uninstall", "stop the service and remove it; data and logs stay", run_uninstall)
    uninstall.add_argument(
        "--user", metavar="NAME", help="who owns the daemon (default: the user behind sudo)"
    )
    for parser in (install, uninstall):
        parser.add_argument(
            "--dry-run", action="store_true", help="only say what would be done; needs no root"
        )
    _add(group, "status", "the service as launchd sees it; exits 3 where it does not run", run_status)


def _add(
    group: Subparsers, name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    examples = [line for line in _EXAMPLES.strip().splitlines() if f"service {name}" in line]
    return add_command(
        group,
        name,
        summary=summary,
        examples="\n".join(examples),
        run=lambda args: _guarded(run, args),
        daemon=False,
        form=f"service-{name}",
    )


def run_install(args: argparse.Namespace) -> int:
    """Install."""
    from macmesh_launchd import Host, InstallOptions, install  # noqa: PLC0415  --help does without

    options = InstallOptions(system=args.system, wired_limit_mb=args.wired_limit_mb)
    return _report(args, install(options, dry_run=args.dry_run, host=Host.current(args.user)))


def run_uninstall(args: argparse.Namespace) -> int:
    """Uninstall."""
    from macmesh_launchd import Host, uninstall  # noqa: PLC0415  --help does without

    return _report(args, uninstall(dry_run=args.dry_run, host=Host.current(args.user)))


def run_status(args: argparse.Namespace) -> int:
    """Show the status; NOT_RUNNING where the daemon's job has no process."""
    from macmesh_launchd import status  # noqa: PLC0415  --help does without

    report = status()
    if args.json:
        print_json(args, report.to_json())
    else:
        print_data(status_text(report))
    return exit_codes.OK if report.daemon.pid is not None else exit_codes.NOT_RUNNING


def _guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    from macmesh_launchd import (  # noqa: PLC0415  --help does without
        LaunchdError,
        LocalNotMacError,
        LocalNotRootError,
        LocalOptionError,
    )

    try:
        return run(args)
    except LocalOptionError as error:
        raise CommandError(str(error), reason="INVALID_ARGUMENT", exit_code=exit_codes.USAGE) from error
    except LocalNotMacError as error:
        raise CommandError(str(error), reason="NOT_MACOS") from error
    except LocalNotRootError as error:
        raise CommandError(str(error), reason="NEEDS_ROOT") from error
    except LaunchdError as error:
        raise CommandError(str(error), reason="LAUNCHD") from error


def _report(args: argparse.Namespace, report: Report) -> int:
    if args.json:
        print_json(args, report.to_json())
        return exit_codes.OK
    would = "would: " if report.dry_run else ""
    for action in report.actions:
        print_data(would + action.replace("\n", "\n    "))
    if not report.changed:
        print_data(f"nothing to {report.operation}: it is so already")
    for note in report.notes:
        talk(note)
    if not report.dry_run and report.operation == "install":
        talk("`daemonctl service status` and `daemonctl status` show it")
    return exit_codes.OK


def status_text(report: StatusReport) -> str:
    """The status for people."""
    lines = [_job_text(report.daemon), _job_text(report.wired_limit)]
    at_start, now = report.wired_limit_mb_at_start, report.wired_limit_mb_now
    if now is not None:
        lines.append(f"iogpu.wired_limit_mb: {now or 'the default of macOS'}")
    if at_start is not None:
        lines.append(f"iogpu.wired_limit_mb at every start: {at_start}")
    return "\n".join(lines)


def _job_text(job: JobStatus) -> str:
    if not job.installed and not job.loaded:
        return f"{job.label}: not installed"
    facts = [job.state or "not loaded"]
    if job.pid is not None:
        facts.append(f"pid {job.pid}")
    if job.disabled:
        facts.append("disabled")
    if not job.installed:
        facts.append("its property list is gone")
    if job.runs is not None:
        facts.append(f"started {job.runs} times")
    if job.last_exit_code is not None:
        facts.append(f"last exit code {job.last_exit_code}")
    return f"{job.label}: {', '.join(facts)} ({job.plist})"
