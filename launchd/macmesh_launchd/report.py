"""What install, uninstall and status answer; plain data that JSON can carry."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job.

    Attributes:
        label: Its name in launchd.
        plist: Path of its property list.
        installed: The property list is there.
        loaded: launchd knows the job.
        disabled: launchd was told not to load it.
        state: In launchd's words, such as "running"; None where it is not loaded.
        pid: Of the running process.
        last_exit_code: In launchd's words.
        runs: How often it was started since it was loaded.
    """

    label: str
    plist: str
    installed: bool
    loaded: bool
    disabled: bool
    state: str | None
    pid: int | None
    last_exit_code: str | None
    runs: int | None


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The service as it is.

    Attributes:
        daemon: The job of `macmeshd`.
        wired_limit: The job that sets the wired limit.
        wired_limit_mb_at_start: What the installed job sets; None where there is none.
        wired_limit_mb_now: What the system says now, 0 for its default; None where it does not say.
    """

    daemon: JobStatus
    wired_limit: JobStatus
    wired_limit_mb_at_start: int | None
    wired_limit_mb_now: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """What was done, or would be.

    Attributes:
        operation: "install" or "uninstall".
        dry_run: Nothing was done.
        changed: Whether there was anything to do.
        actions: Each action in order, for people.
        notes: What is good to know afterwards.
        status: The service afterwards; as it was, in a dry run.
    """

    operation: str
    dry_run: bool
    changed: bool
    actions: tuple[str, ...]
    notes: tuple[str, ...]
    status: StatusReport

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
