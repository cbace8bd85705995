"""How long a request waits for a plan, and how often it is tried again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """Times of a request.

    Attributes:
        patience_seconds: Longest wait without a run since the last token, all waits together.
        retry_seconds: First pause before a run under a plan that has failed already; it doubles each time.
        longest_retry_seconds: Longest such pause.
        most_lost_plans: A request under which the workers of so many plans ended without a token is given up: it
            may itself be the reason.
    """

    patience_seconds: float = 120.0
    retry_seconds: float = 0.25
    longest_retry_seconds: float = 4.0
    most_lost_plans: int = 4
