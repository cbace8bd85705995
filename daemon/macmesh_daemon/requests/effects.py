"""What is to be done for a request. The last of its effects is one of `Finished`, `Cancelled` and `Failed`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.requests.ask import Finish


@dataclass(frozen=True, slots=True)
class Run:
    """Have the head of a plan run the request.

    Attributes:
        number: Names the run, from 1; what comes of it carries it.
        epoch: Of the plan.
        head_node_id: Who runs it.
        prompt_token_ids: The prompt.
        generated_token_ids: The log. The next random number is that of the position behind it.
        max_tokens: Most tokens to generate, those in the log included.
    """

    number: int
    epoch: Epoch
    head_node_id: str
    prompt_token_ids: tuple[int, ...]
    generated_token_ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Nothing of this run is wanted any more."""

    number: int


@dataclass(frozen=True, slots=True)
class RunLost:
    """For the record: a run is given up, and another one is to follow.

    Attributes:
        number: The run.
        epoch: Under which it ran.
        reason: UPPER_SNAKE.
        message: For people.
    """

    number: int
    epoch: Epoch
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand a token, which is in the log, to the client.

    Attributes:
        index: Position among the generated tokens, from 0.
        token_id: The token.
        logprob: Natural logarithm of its probability.
        finish: Set on the last.
    """

    index: int
    token_id: int
    logprob: float
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class TellPaused:
    """Tell the client that there is no plan to run the request.

    Attributes:
        reason: UPPER_SNAKE.
        message: What is missing, for people.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TellQueued:
    """Tell the client that the head lets the request wait; see `events.Queued`."""

    position: int
    estimate_seconds: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end: every token was delivered."""

    finish: Finish


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The end: the client left."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The end: the client is to be told why.

    Attributes:
        reason: UPPER_SNAKE.
        message: For people.
        facts: Of the failure, by name.
    """

    reason: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


End = Finished | Cancelled | Failed
Effect = Run | CancelRun | RunLost | Deliver | TellPaused | TellQueued | End
