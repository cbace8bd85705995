"""Errors of placement.

The tree::

    PlacementError
    └── LocalPlacementError          what the caller gave cannot be used
        ├── LocalProfileError        a model profile that is not one
        ├── LocalClusterError        a node or a cluster file that is not one
        └── LocalPlanRequestError    a request that contradicts itself or its cluster

A cluster that is too small is no error: the planner answers with a `Refusal`.
"""


class PlacementError(ValueError):
    """Base of all errors of placement."""


class LocalPlacementError(PlacementError):
    """The caller's input cannot be used; the message names the field."""


class LocalProfileError(LocalPlacementError):
    """A profile that breaks its format or holds impossible numbers."""


class LocalClusterError(LocalPlacementError):
    """A node capacity or a cluster file that breaks its format or holds impossible numbers."""


class LocalPlanRequestError(LocalPlacementError):
    """A plan request that contradicts itself, its profile or its nodes."""
