"""What goes into the head's schedule and what comes out of it. Plain data."""

import dataclasses
import enum

from macmesh_daemon.engine.sampling_parameters import Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """One tokenised request."""

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    """0 means up to the context."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    stop_tokens: frozenset[int] = frozenset()
    """The first of these to be generated ends the request; it is still told."""
    reuse_prefix: bool = True
    """Caches of an earlier request with the same beginning may be taken up."""
    keep: bool = True
    """Its caches may stay for a later request."""


class Finish(enum.Enum):
    """Why a request ended well."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclasses.dataclass(frozen=True)
class Generated:
    """A token, and on the last one why it is the last."""

    request_id: str
    index: int
    token: int
    logprob: float
    finish: Finish | None


@dataclasses.dataclass(frozen=True)
class Cancelled:
    """The end of a request that was cancelled."""

    request_id: str


@dataclasses.dataclass(frozen=True)
class Refused:
    """A request that was not taken."""

    request_id: str
    reason: str
    """UPPER_SNAKE, as in google.rpc.ErrorInfo."""
    message: str


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A request waits; told when it comes and when its position changes, at most once a second."""

    request_id: str
    position: int
    """From 1: the next to be taken."""
    estimate_seconds: float | None
    """About so long until it begins; None where nothing has ended yet to judge by."""


Effect = Generated | Cancelled | Refused | Waiting
