"""Errors of the weights package.

The tree::

    WeightsError
    ├── LocalWeightsError                  this machine, or what it was asked, is at fault
    │   ├── LocalWeightsStoreError         the store cannot be read or written
    │   ├── LocalWeightsMissingError       bytes are wanted that are not here; never read as zeros
    │   ├── LocalNoSpaceError              the disk has no room for them
    │   ├── LocalModelUnknownError         no model of that digest is served here
    │   └── LocalRangeError                a range that is none of the model, or not held
    └── RemoteWeightsError                 the others cannot give what is needed
        ├── RemoteSourceBusyError          it serves as many streams as it will; ask again
        ├── RemoteSourceFailedError        it broke off, was silent, or does not have what it said
        ├── RemoteContentDiffersError      nodes disagree on the bytes of a model, or a hub on its own
        └── RemoteNoSourceError            neither a node nor a hub gives what is missing
"""


class WeightsError(Exception):
    """Base of all errors of the weights package."""


class LocalWeightsError(WeightsError):
    """This machine, or what it was asked, is at fault."""


class LocalWeightsStoreError(LocalWeightsError):
    """The store of partial models cannot be read or written."""


class LocalWeightsMissingError(LocalWeightsError):
    """Bytes are wanted that are not here."""


class LocalNoSpaceError(LocalWeightsError):
    """The disk has no room for what is to be fetched."""


class LocalModelUnknownError(LocalWeightsError):
    """No model of that digest is served by this node."""


class LocalRangeError(LocalWeightsError):
    """A range that is none of the model, or that this node does not hold."""


class RemoteWeightsError(WeightsError):
    """The others cannot give what is needed."""


class RemoteSourceBusyError(RemoteWeightsError):
    """A source serves as many streams as it will."""


class RemoteSourceFailedError(RemoteWeightsError):
    """A source broke off, was silent, or does not have what it said."""


class RemoteContentDiffersError(RemoteWeightsError):
    """Nodes disagree on the bytes of a model, or a hub's bytes are not what it names."""


class RemoteNoSourceError(RemoteWeightsError):
    """Neither a node nor a hub gives what is missing."""
