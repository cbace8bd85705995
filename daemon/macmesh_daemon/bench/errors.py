"""Errors of the benchmark.

::

    BenchError
    ├── LocalBenchArgumentError     what was asked for cannot be run on the plan that is served
    ├── LocalBaselineError          the baseline could not be run on this machine
    └── RemoteAnswerError           the cluster did not answer as it must: too few tokens, or another plan meanwhile
"""


class BenchError(Exception):
    """Base of the errors of this package."""


class LocalBenchArgumentError(BenchError):
    """What was asked for cannot be run on the plan that is served."""


class LocalBaselineError(BenchError):
    """The baseline could not be run on this machine."""


class RemoteAnswerError(BenchError):
    """The cluster did not answer as it must."""
