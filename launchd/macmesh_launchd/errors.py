"""What can go wrong with the service. Every message says what happened, where, and what to do.

    LaunchdError
    ├── LocalNotMacError        this system has no launchd
    ├── LocalNotRootError       the system domain of launchd belongs to root
    ├── LocalOptionError        the options ask for something that cannot be
    ├── LocalServiceFileError   a property list or a log folder cannot be read, written or removed
    └── LocalLaunchctlError     launchctl refused, or did not answer in time

There is no remote side: launchd is part of this machine.
"""


class LaunchdError(Exception):
    """Base of the errors of this package."""


class LocalNotMacError(LaunchdError):
    """This system has no launchd."""


class LocalNotRootError(LaunchdError):
    """The system domain of launchd belongs to root.

    Attributes:
        command: The same command with sudo.
    """

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command


class LocalOptionError(LaunchdError):
    """The options ask for something that cannot be."""


class LocalServiceFileError(LaunchdError):
    """A property list or a log folder cannot be read, written or removed."""


class LocalLaunchctlError(LaunchdError):
    """launchctl refused, or did not answer in time.

    Attributes:
        exit_code: Of launchctl; None when it did not end or could not be started.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
