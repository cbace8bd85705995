"""Errors of the engine.

::

    EngineError
    ├── LocalModelError                  the model on this machine cannot be used
    │   ├── LocalModelFilesError         files are missing, broken or contradict each other
    │   ├── LocalModelLoadError          mlx-lm cannot load it
    │   └── LocalUnsplittableError       it cannot be cut into these stages
    ├── LocalStageError                  a stage was asked for something that it cannot do
    └── RemoteScheduleError              another stage sent a step that does not fit the state
"""


class EngineError(Exception):
    """Base of all errors of the engine."""


class LocalModelError(EngineError):
    """The model on this machine cannot be used."""


class LocalModelFilesError(LocalModelError):
    """Files are missing, broken or contradict each other."""


class LocalModelLoadError(LocalModelError):
    """The model cannot be loaded by mlx-lm."""


class LocalUnsplittableError(LocalModelError):
    """The model cannot be cut into these stages."""


class LocalStageError(EngineError):
    """A stage was asked for something that it cannot do."""


class RemoteScheduleError(EngineError):
    """Another stage sent a step that does not fit the state."""
