"""Errors of what is known about the machine.

::

    HostInfoError
    └── LocalProbeError   the memory bandwidth could not be measured
"""


class HostInfoError(Exception):
    """Base of the errors of this package."""


class LocalProbeError(HostInfoError):
    """The memory bandwidth could not be measured."""
