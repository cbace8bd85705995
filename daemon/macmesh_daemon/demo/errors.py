"""Errors of the demo.

::

    DemoError
    ├── LocalDemoSetupError       the throw-away cluster could not be set up
    └── RemoteDemoNodeError       a daemon of it failed, or did not do its part in time
"""


class DemoError(Exception):
    """Base of the demo's errors."""


class LocalDemoSetupError(DemoError):
    """The throw-away cluster could not be set up."""


class RemoteDemoNodeError(DemoError):
    """A daemon of the throw-away cluster failed, or did not do its part in time."""
