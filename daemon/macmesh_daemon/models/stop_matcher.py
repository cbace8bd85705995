"""Find stop texts in a stream of pieces. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopResult:
    """What one piece of text led to.

    Attributes:
        text: May be shown now.
        stopped: A stop text is complete; nothing that follows may be shown.
    """

    text: str
    stopped: bool


class StopMatcher:
    """Cuts a stream at the first stop text, and shows nothing that may turn out to be the beginning of one.

    The cut depends on the text only, not on how it was cut into pieces: the stop text that is complete first
    decides, and of several that end at the same place the one that starts first.
    """

    def __init__(self, stop_texts: Sequence[str]) -> None:
        """Take the stop texts; none is fine.

        Raises:
            ValueError: A stop text is empty: it would stop before anything was said.
        """
        if "" in stop_texts:
            raise ValueError("a stop text must not be empty")
        self._stop_texts = tuple(dict.fromkeys(stop_texts))
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found."""
        return self._stopped

    def push(self, piece: str) -> StopResult:
        """Take the next piece; after a stop, pieces are dropped."""
        if self._stopped:
            return StopResult("", stopped=True)
        text = self._held + piece
        matches = [(at + len(stop), at) for stop in self._stop_texts if (at := text.find(stop)) >= 0]
        if matches:
            self._stopped, self._held = True, ""
            return StopResult(text[: min(matches)[1]], stopped=True)
        shown = len(text) - self._undecided(text)
        self._held = text[shown:]
        return StopResult(text[:shown], stopped=False)

    def flush(self) -> str:
        """The text still held back, once no more will come."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop text."""
        longest = max((len(stop) - 1 for stop in self._stop_texts), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop_texts):
                return length
        return 0
