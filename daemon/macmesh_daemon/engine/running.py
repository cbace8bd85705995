"""A request that holds a slot. Plain data."""

import dataclasses

from macmesh_daemon.engine.requests import Request


@dataclasses.dataclass(eq=False)
class Running:
    """A request that holds a slot, as far as steps have been given out."""

    request: Request
    order: int
    """Counts the requests as they were taken."""
    slot: int
    total_tokens: int
    """The prompt and all that may be generated."""
    reserve_tokens: int
    """Tokens that its own caches are allocated for; at least `total_tokens`."""
    fed: int
    """Tokens given out to steps, and those that it took up: the length of its caches after all steps."""
    began: float
    chunk_tokens: int = 0
    """Most prompt tokens of its steps while nothing else decodes; 0 before the first."""
    samples: int = 0
    """Decode steps given out."""
    outstanding: int = 0
    """Decode steps that are not done."""
    generated: list[int] = dataclasses.field(default_factory=list)
    ended: bool = False

    @property
    def body_left(self) -> int:
        """Prompt tokens to go through prefill steps: all but the last."""
        return max(0, len(self.request.prompt) - 1 - self.fed)

    @property
    def remaining(self) -> int:
        """Tokens that may still be given out."""
        return self.total_tokens - self.fed

    @property
    def remaining_as_row(self) -> int:
        """Tokens that may still be given out once the prompt has been: the most that it brings into a batch."""
        return self.total_tokens - max(self.fed, len(self.request.prompt))

    @property
    def samples_left(self) -> int:
        """Tokens that are to be sampled by steps not given out yet."""
        return self.total_tokens - len(self.request.prompt) - self.samples

    @property
    def first_is_due(self) -> bool:
        """The last token of the prompt goes next."""
        return not self.ended and not self.body_left and not self.samples

    @property
    def known_tokens(self) -> int:
        """Tokens in its caches whose values are known; a step given out in vain may have put one more there."""
        return min(self.fed, len(self.request.prompt) + len(self.generated))

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt and what was generated."""
        return (*self.request.prompt, *self.generated)
