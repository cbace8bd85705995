"""Running programs, behind a seam for tests."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from macmesh_launchd.errors import LocalLaunchctlError


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended."""

    exit_code: int
    stdout: str
    stderr: str


class Runner(Protocol):
    """Runs a program found on PATH to its end."""

    def __call__(self, arguments: Sequence[str]) -> Completed:
        """Run; an exit code other than 0 is a result, not an error.

        Raises:
            LocalLaunchctlError: The program is absent or did not end in time.
        """
        ...


class SubprocessRunner:
    """The real one."""

    def __init__(self, deadline_seconds: float = 40) -> None:
        """Keep the deadline; the default outlasts a `bootout` that waits for the daemon's ExitTimeOut."""
        self._deadline_seconds = deadline_seconds

    def __call__(self, arguments: Sequence[str]) -> Completed:
        """See `Runner`."""
        try:
            done = subprocess.run(  # noqa: S603  fixed programs with arguments made here
                list(arguments),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._deadline_seconds,
                check=False,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError as error:
            raise LocalLaunchctlError(
                f"{arguments[0]} is not on PATH; add /bin and /usr/sbin to it"
            ) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LocalLaunchctlError(
                f"{' '.join(arguments)} could not be run to its end: {error}; try again, or restart"
            ) from error
        return Completed(done.returncode, done.stdout, done.stderr)
