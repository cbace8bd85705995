"""What a client asked for, as far as a machine has to know it."""

import enum
from dataclasses import dataclass


class Finish(enum.StrEnum):
    """Why a request ended well."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Ask:
    """A tokenised request. How to sample is nobody's business here; the number of tokens gives the next random number.

    Attributes:
        request_id: Unique in the cluster.
        prompt_token_ids: The prompt as the model sees it.
        model_digest: Of the model that answers; no other may go on with the request.
        max_tokens: Most tokens to generate; 0 means up to the context of the plan that runs it first.
        stop_token_ids: The first of these to be generated ends the request; it is delivered.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    model_digest: str
    max_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
