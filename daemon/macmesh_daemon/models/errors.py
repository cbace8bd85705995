"""Errors of the models package.

The tree::

    ModelError
    └── LocalModelError                   what this machine holds, or was asked for, cannot be used
        ├── LocalModelNotFoundError       no such folder
        ├── LocalModelFolderError         a folder that is broken; names the file
        ├── LocalArchitectureError        mlx-lm here cannot run the architecture, or macmesh cannot cost it
        └── LocalProfileProcessError      the profile process failed or was too slow
"""


class ModelError(Exception):
    """Base of all errors of the models package.

    Attributes:
        reason: UPPER_SNAKE, as in ``google.rpc.ErrorInfo``.
    """

    reason = "MODEL_ERROR"


class LocalModelError(ModelError):
    """Something on this machine, or in what it was asked, cannot be used."""


class LocalModelNotFoundError(LocalModelError):
    """No model folder of that name; the message lists where it was looked for."""

    reason = "MODEL_NOT_FOUND"


class LocalModelFolderError(LocalModelError):
    """A model folder with a missing, truncated or contradictory file; the message names it."""

    reason = "MODEL_BROKEN"


class LocalArchitectureError(LocalModelError):
    """An architecture that the installed mlx-lm does not have, or whose cache cannot be costed."""

    reason = "UNSUPPORTED_ARCHITECTURE"


class LocalProfileProcessError(LocalModelError):
    """The profile process ended badly, printed no profile, or outlived its deadline."""

    reason = "INTERNAL"
