"""What happens to a request. Of plans, every request of a node is told in the order of their age, the oldest first."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.requests.ask import Finish


@dataclass(frozen=True, slots=True)
class PlanReady:
    """A plan is committed, and each of its stages is ready as far as is known.

    Attributes:
        epoch: Names it.
        head_node_id: Runs its first stage.
        context_tokens: What it guarantees.
        model_digest: Of its model.
        model_id: For people.
    """

    epoch: Epoch
    head_node_id: str
    context_tokens: int
    model_digest: str
    model_id: str = ""


@dataclass(frozen=True, slots=True)
class PlanPending:
    """A model is wanted, and no plan is ready for it.

    Attributes:
        epoch: Of a plan that is committed and not ready; None where there is none, or it is not known.
        reason: UPPER_SNAKE, as in google.rpc.ErrorInfo.
        missing: What is missing, for people.
        model_digest: Of the model that is wanted.
        model_id: For people.
    """

    epoch: Epoch | None
    reason: str
    missing: str
    model_digest: str
    model_id: str = ""


@dataclass(frozen=True, slots=True)
class PlanWithdrawn:
    """Nothing is wanted any more: waiting is in vain.

    Attributes:
        reason: UPPER_SNAKE.
        message: For people.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Token:
    """A run told a token.

    Attributes:
        run: Number of the run.
        index: Position among the generated tokens, from 0.
        token_id: The token.
        logprob: Natural logarithm of its probability.
        finish: Set on the last.
    """

    run: int
    index: int
    token_id: int
    logprob: float = 0.0
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    """The head has taken a run and lets it wait.

    Attributes:
        run: Number of the run.
        position: From 1: the next to be taken.
        estimate_seconds: About so long until it begins; None where that is not known.
    """

    run: int
    position: int
    estimate_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RunFailed:
    """A run was refused, was lost or failed.

    Attributes:
        run: Number of the run.
        reason: UPPER_SNAKE.
        message: For people.
        facts: Of the failure, by name.
    """

    run: int
    reason: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextStopped:
    """The tokens delivered hold a text that ends the request."""


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The client left, or asked for the end."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


PlanSeen = PlanReady | PlanPending | PlanWithdrawn
Event = PlanSeen | Token | Queued | RunFailed | TextStopped | ClientGone | Tick
