"""What one measured request did. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """A response that carried tokens.

    Attributes:
        at_seconds: When it came, on the client's clock.
        token_ids: Its tokens, at least one.
    """

    at_seconds: float
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RequestRun:
    """One request from its call to its end.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        began_seconds: When it was called, on the client's clock.
        arrivals: What came, in order; at least one.
    """

    prompt_tokens: int
    began_seconds: float
    arrivals: tuple[Arrival, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The generated tokens."""
        return tuple(token_id for arrival in self.arrivals for token_id in arrival.token_ids)

    @property
    def ended_seconds(self) -> float:
        """When the last token came."""
        return self.arrivals[-1].at_seconds

    @property
    def first_token_seconds(self) -> float:
        """From the call to the first token."""
        return self.arrivals[0].at_seconds - self.began_seconds

    @property
    def inter_token_seconds(self) -> tuple[float, ...]:
        """One for each token after the first response; tokens that came together share their time evenly."""
        times: list[float] = []
        before = self.arrivals[0].at_seconds
        for arrival in self.arrivals[1:]:
            count = len(arrival.token_ids)
            times += [(arrival.at_seconds - before) / count] * count
            before = arrival.at_seconds
        return tuple(times)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens over the time to the first token; 0 where that took no time."""
        return self.prompt_tokens / self.first_token_seconds if self.first_token_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first response over the time that they took; 0 where there are none."""
        seconds = self.ended_seconds - self.arrivals[0].at_seconds
        count = len(self.token_ids) - len(self.arrivals[0].token_ids)
        return count / seconds if seconds > 0 else 0.0
