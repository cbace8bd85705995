"""Model folders on this machine: finding them, reading their headers, profiling them. No mlx.

The errors are listed in `macmesh_daemon.models.errors`.
"""

from macmesh_daemon.models.errors import (
    LocalArchitectureError,
    LocalModelError,
    LocalModelFolderError,
    LocalModelNotFoundError,
    LocalOfflineError,
    LocalProfileProcessError,
    ModelError,
    RemoteHubUnavailableError,
    RemoteModelBrokenError,
    RemoteModelError,
    RemoteModelGatedError,
    RemoteModelNotFoundError,
)
from macmesh_daemon.models.folder import ModelFolder, resolve

__all__ = [
    "LocalArchitectureError",
    "LocalModelError",
    "LocalModelFolderError",
    "LocalModelNotFoundError",
    "LocalOfflineError",
    "LocalProfileProcessError",
    "ModelError",
    "ModelFolder",
    "RemoteHubUnavailableError",
    "RemoteModelBrokenError",
    "RemoteModelError",
    "RemoteModelGatedError",
    "RemoteModelNotFoundError",
    "resolve",
]
