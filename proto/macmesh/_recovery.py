"""What a client keeps of a generation, so that another node can go on with it. Pure."""

from dataclasses import dataclass
from typing import Final

from macmesh.errors import MacmeshError
from macmesh.reasons import Reason
from macmesh.v1 import inference_pb2

#: Signs of life come every five seconds: a node that is silent for so long is lost.
SILENCE_SECONDS: Final = 20.0
#: A node that takes a generation up says so at once.
ANSWER_SECONDS: Final = 8.0
#: Most tries in a row without a token.
MOST_TRIES: Final = 20
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0
_LOST_REASONS: Final = frozenset({Reason.CONNECTION_FAILED, Reason.DAEMON_NOT_RUNNING, Reason.SHUTTING_DOWN})
#: Of statuses without ErrorInfo: what gRPC makes of a server that goes down, or of a broken connection.
_LOST_CODES: Final = frozenset({"UNAVAILABLE", "CANCELLED", "INTERNAL"})


def is_loss(error: MacmeshError) -> bool:
    """Whether the node was lost, and did not say no."""
    if error.reason in _LOST_REASONS:
        return True
    return error.reason in {Reason.UNKNOWN, Reason.CANCELLED} and error.code in _LOST_CODES


@dataclass(frozen=True, slots=True)
class Retry:
    """What to do after a loss.

    Attributes:
        request: To be sent.
        pause_seconds: Before that.
    """

    request: inference_pb2.GenerateRequest
    pause_seconds: float


class Recovery:
    """One generation as its client has it.

    Args:
        request: As it is sent first; it is changed to have the prompt's tokens told.
        seconds: From a loss to the answer of another node; 0 never tries.
        ends_at: Clock reading at which the whole has to be over.
    """

    def __init__(
        self, request: inference_pb2.GenerateRequest, *, seconds: float, ends_at: float = float("inf")
    ) -> None:
        self.request = request
        """As it is sent first."""
        self.request.tell_prompt_tokens = not request.HasField("tokens")
        self._seconds = seconds
        self.ends_at = ends_at
        """Clock reading at which the whole has to be over."""
        self._facts: inference_pb2.RequestFacts | None = None
        self._token_ids: list[int] = []
        self._text_bytes = 0
        self._next_index = 0
        self._attempt = 0
        self._tries = 0
        self._lost_at: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether losses are made good at all."""
        return self._seconds > 0

    @property
    def is_asking(self) -> bool:
        """Whether a node was asked to go on and has not answered."""
        return self._lost_at is not None

    def note(self, response: inference_pb2.GenerateResponse) -> None:
        """Keep what a response brings."""
        self._lost_at = None
        if response.HasField("request") and self._facts is None:
            self._facts = response.request
        if response.token_ids:
            self._tries = 0
            self._token_ids.extend(response.token_ids)
        self._text_bytes += len(response.text.encode())
        self._next_index = response.index + 1

    def after(self, error: MacmeshError, now: float, *, nodes: int) -> Retry | None:
        """How to go on after an error; None where it is to be told.

        Args:
            error: What the last try ended with.
            now: Clock reading in seconds.
            nodes: How many nodes are known.
        """
        if not self.is_on or not is_loss(error):
            return None
        if (
            self._facts is None and self._tries >= nodes - 1
        ):  # nothing was begun, and nobody else is left to ask
            return None
        if self._lost_at is None:
            self._lost_at = now
        pause = 0.0
        if self._tries >= nodes:  # each was tried once
            pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** (self._tries - nodes), _LONGEST_PAUSE_SECONDS)
        if now + pause >= min(self._lost_at + self._seconds, self.ends_at) or self._tries >= MOST_TRIES:
            return None
        self._tries += 1
        return Retry(self._next_request(), pause)

    def answer_seconds(self, now: float) -> float:
        """How long to wait for a node that was asked to go on."""
        lost_at = now if self._lost_at is None else self._lost_at
        return max(0.05, min(ANSWER_SECONDS, lost_at + self._seconds - now))

    def _next_request(self) -> inference_pb2.GenerateRequest:
        facts = self._facts
        if facts is None:
            return self.request  # nothing was told of it: another node begins it anew
        self._attempt += 1
        request = inference_pb2.GenerateRequest()
        request.CopyFrom(self.request)
        if not request.HasField("tokens"):
            # Tokenising it again might give others: chat templates may tell the date.
            request.tokens.token_ids.extend(facts.prompt_token_ids)
        request.tell_prompt_tokens = False
        request.model_id = facts.model_id
        request.sampling.seed = facts.seed
        request.resume.CopyFrom(
            inference_pb2.Resume(
                request_id=facts.request_id,
                attempt=self._attempt,
                token_ids=self._token_ids,
                text_bytes=self._text_bytes,
                next_index=self._next_index,
                model_digest=facts.model_digest,
            )
        )
        return request
