"""Errors of the worker.

::

    WorkerError
    ├── LocalStartError             the start command makes no sense, or what it asks cannot be bound
    ├── RemoteNeighbourError        another stage is not who it should be, went away or was silent
    └── RemoteStageFailedError      another stage said that it failed
"""


class WorkerError(Exception):
    """Base of all errors of the worker."""


class LocalStartError(WorkerError):
    """The start command makes no sense, or what it asks cannot be bound."""


class RemoteNeighbourError(WorkerError):
    """Another stage is not who it should be, went away or was silent."""


class RemoteStageFailedError(WorkerError):
    """Another stage said that it failed."""
