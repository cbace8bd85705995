"""Errors of the models package.

The tree::

    ModelError
    ├── LocalModelError                   what this machine holds, or was asked for, cannot be used
    │   ├── LocalModelNotFoundError       no such folder
    │   ├── LocalModelFolderError         a folder that is broken; names the file
    │   ├── LocalArchitectureError        mlx-lm here cannot run the architecture, or macmesh cannot cost it
    │   ├── LocalProfileProcessError      the profile process failed or was too slow
    │   └── LocalOfflineError             a hub was asked for while HF_HUB_OFFLINE is set
    └── RemoteModelError                  what a hub holds, or how it answers, is no use
        ├── RemoteModelNotFoundError      no such model there, or no such revision
        ├── RemoteModelGatedError         it wants a token, or one with more rights
        ├── RemoteModelBrokenError        no safetensors weights, or a file that contradicts itself
        └── RemoteHubUnavailableError     it cannot be reached, fails, or is too slow
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


class LocalOfflineError(LocalModelError):
    """A hub was asked for while this machine is told to stay offline."""

    reason = "OFFLINE"


class RemoteModelError(ModelError):
    """What a hub holds, or how it answers, is no use."""


class RemoteModelNotFoundError(RemoteModelError):
    """The hub has no such model, or no such revision of it."""

    reason = "MODEL_NOT_FOUND"


class RemoteModelGatedError(RemoteModelError):
    """The hub wants a token, or one with more rights."""

    reason = "MODEL_GATED"


class RemoteModelBrokenError(RemoteModelError):
    """A model without safetensors weights, or with a file that contradicts itself."""

    reason = "MODEL_BROKEN"


class RemoteHubUnavailableError(RemoteModelError):
    """The hub cannot be reached, fails, or is too slow; asking again may help."""

    reason = "HUB_UNAVAILABLE"
