"""The API node's record of a request: what was asked and every token, kept before it is told."""

from __future__ import annotations

from dataclasses import dataclass, field


class TokenError(ValueError):
    """A token cannot follow the log."""


class LocalTokenGapError(TokenError):
    """A token before it is missing."""


class LocalTokenChangedError(TokenError):
    """It is another one than the log has at its position."""


@dataclass(slots=True)
class TokenLog:
    """One request, complete enough to be replayed: prompt and every token so far.

    Attributes:
        request_id: Unique in the cluster.
        prompt_token_ids: The prompt as the model sees it.
        accepted_at: Clock reading at acceptance, in seconds.
        token_ids: Tokens generated, in order, each recorded before it is told to the client.
        first_token_at: Clock reading at the first token recorded here.
        last_token_at: Clock reading at the latest token.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    accepted_at: float
    token_ids: list[int] = field(default_factory=list)
    first_token_at: float | None = None
    last_token_at: float | None = None

    def record(self, index: int, token_id: int, now: float) -> bool:
        """Keep a token; False where it was kept before, so that nothing is told twice.

        Raises:
            LocalTokenGapError: a token before it is missing.
            LocalTokenChangedError: the log has another token there.
        """
        if index < len(self.token_ids):
            if self.token_ids[index] != token_id:
                raise LocalTokenChangedError(
                    f"request {self.request_id}: token {index} came as {token_id}, it was {self.token_ids[index]}"
                )
            return False
        if index > len(self.token_ids):
            raise LocalTokenGapError(
                f"request {self.request_id}: token {index} came after token {len(self.token_ids) - 1}"
            )
        self.token_ids.append(token_id)
        if self.first_token_at is None:
            self.first_token_at = now
        self.last_token_at = now
        return True

    @property
    def first_token_seconds(self) -> float:
        """From acceptance to the first token; 0 where none came."""
        return 0.0 if self.first_token_at is None else self.first_token_at - self.accepted_at

    @property
    def decode_seconds(self) -> float:
        """From the first to the latest token."""
        if self.first_token_at is None or self.last_token_at is None:
            return 0.0
        return self.last_token_at - self.first_token_at
