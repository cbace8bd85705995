"""Errors of the cluster core.

::

    ClusterError
    ├── LocalClusterSettingsInvalid (also a ValueError)   settings that contradict each other
    └── LocalClusterMisuse (also a ValueError)            the shell broke the contract of `ClusterMachine`

What peers get wrong is answered, announced or ignored, never raised: a machine that raises is a bug here.
"""


class ClusterError(Exception):
    """Base of the errors of the cluster core."""


class LocalClusterSettingsInvalid(ClusterError, ValueError):  # noqa: N818  named as the project's error trees are
    """Settings contradict each other; the text names them."""


class LocalClusterMisuse(ClusterError, ValueError):  # noqa: N818  same
    """The shell passed what the contract forbids; the text says what."""
