"""Errors of the supervisor.

::

    SupervisorError
    ├── LocalWorkerError                 this daemon did something wrong
    │   ├── LocalWorkerStartError        the process could not be started
    │   └── LocalWorkerStateError        the worker is not in a state for this call
    ├── LocalVerifyError                 a comparison could not be carried out
    └── RemoteWorkerError                the worker did something wrong
        └── RemoteWorkerEndedError       its process has ended
"""


class SupervisorError(Exception):
    """Base of all errors of the supervisor."""


class LocalWorkerError(SupervisorError):
    """This daemon did something wrong."""


class LocalWorkerStartError(LocalWorkerError):
    """The worker process could not be started."""


class LocalWorkerStateError(LocalWorkerError):
    """The worker is not in a state for this call."""


class LocalVerifyError(SupervisorError):
    """A comparison with the reference could not be carried out."""


class RemoteWorkerError(SupervisorError):
    """The worker did something wrong."""


class RemoteWorkerEndedError(RemoteWorkerError):
    """The worker's process has ended."""
