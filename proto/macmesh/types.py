"""Values that the SDK hands out.

`ClusterStatus`, `StagesStats` and the messages inside them are the wire messages themselves, typed and documented in
``macmesh/v1/cluster.proto``; the rest are small frozen dataclasses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias

from macmesh.v1 import cluster_pb2, peer_pb2, types_pb2

#: The cluster as one node sees it.
ClusterStatus: TypeAlias = cluster_pb2.GetStatusResponse
#: Memory and time of every stage of the running plan.
StagesStats: TypeAlias = cluster_pb2.GetStageStatsResponse


class FinishReason(StrEnum):
    """Why a generation ended."""

    #: A stop text or an end-of-sequence token.
    STOP = "stop"
    #: max_tokens was reached.
    LENGTH = "length"
    #: The request was cancelled.
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and times of one request.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated.
        first_token_seconds: From acceptance to the first token.
        decode_seconds: From the first to the last token.
    """

    prompt_tokens: int
    completion_tokens: int
    first_token_seconds: float
    decode_seconds: float

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed after the first token; 0 where fewer than two tokens came."""
        if self.completion_tokens < 2 or self.decode_seconds <= 0:  # noqa: PLR2004  one token has no interval
            return 0.0
        return (self.completion_tokens - 1) / self.decode_seconds


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """How a request was taken.

    Attributes:
        request_id: Unique in the cluster.
        seed: The seed in use; the same seed, prompt and plan give the same tokens.
        model_id: The model that answers.
        epoch: The epoch that serves it first, ``generation.term.seq``; empty where none does yet.
    """

    request_id: str
    seed: int
    model_id: str
    epoch: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that has not begun.

    Attributes:
        position: From 1: the next to be taken.
        estimate_seconds: About so long until it begins; None where nothing has ended yet to judge by.
    """

    position: int
    estimate_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Paused:
    """A request that no stages run just now: it is kept, and goes on once there is a plan.

    Attributes:
        reason: UPPER_SNAKE, usually one of `macmesh.reasons.Reason`.
        message: What is missing, for people.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class GenerateChunk:
    """A piece of a generation.

    Attributes:
        text: Text that is now certain; may be empty while a character is incomplete.
        token_ids: Tokens that this piece adds.
        logprobs: Natural logarithms of their probabilities.
        finish_reason: Set on the last piece.
        usage: Set on the last piece.
        request: Set on the first piece.
        waiting: Set on pieces before the first token that tell that the request has to wait; they have no text.
        paused: Set on pieces that tell that no stages run the request, before the first token or between two; they
            have no text. Told when it begins and again every few seconds.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    request: RequestFacts | None = None
    waiting: Waiting | None = None
    paused: Paused | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole generation; see `GenerateChunk` for the fields."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    usage: Usage
    request: RequestFacts


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A dry run.

    Attributes:
        feasible: Whether the model fits at the context.
        result: The plan and its certificate, or the refusal, as ``daemonctl plan --json`` prints it.
    """

    feasible: bool
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """A step of a load.

    Attributes:
        phase: "profiling", "planning", "preparing", "committed", "loading", "connecting" or "ready".
        epoch: ``generation.term.seq`` once there is one, else empty.
        loaded_bytes: Weights loaded so far, all stages together.
        total_bytes: Weights to load, all stages together; 0 until known.
        workers: Every stage's worker, as last reported.
        deployment: The plan, once committed.
    """

    phase: str
    epoch: str
    loaded_bytes: int
    total_bytes: int
    workers: tuple[peer_pb2.WorkerReport, ...] = ()
    deployment: types_pb2.Deployment | None = None


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """A decision or change in the cluster.

    Attributes:
        time: When the node saw it, UTC.
        event: Constant lower-case phrase, such as "coordinator elected".
        facts: Its facts.
    """

    time: datetime
    event: str
    facts: Mapping[str, Any]


def epoch_text(epoch: types_pb2.Epoch) -> str:
    """An epoch as ``generation.term.seq``."""
    return f"{epoch.generation}.{epoch.term}.{epoch.seq}"


def prefix_hit_rate(schedule: peer_pb2.SchedulerStats) -> float | None:
    """Share of the requests begun so far that took up kept caches of an earlier one; None before the first."""
    return schedule.prefix_hits / schedule.prompts if schedule.prompts else None
