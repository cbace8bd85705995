"""From tokens to the text that a client may see. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh.v1 import inference_pb2
from macmesh_daemon.models.stop_matcher import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from macmesh_daemon.models.tokenizer import ModelTokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds: text that is certain now, the token itself, and the end where it is reached."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: inference_pb2.FinishReason.ValueType = inference_pb2.FINISH_REASON_UNSPECIFIED

    @property
    def worth_sending(self) -> bool:
        """Whether a client learns anything from it."""
        return bool(self.text or self.token_ids or self.finish_reason)


class TextAssembler:
    """Turns a request's tokens into text, holds back what may become a stop text, and sees the end.

    An end-of-sequence token is delivered as a token, but not as text.
    """

    def __init__(self, tokenizer: ModelTokenizer, *, stops: tuple[str, ...], end_ids: frozenset[int]) -> None:
        self._detokenizer = tokenizer.stream_detokenizer()
        self._stops = StopMatcher(stops)
        self._end_ids = end_ids

    def take(self, token_id: int, logprob: float, finish: inference_pb2.FinishReason.ValueType) -> Piece:
        """One token, in order; where it carries the end, that is told too."""
        text, stopped = self._add(token_id)
        if stopped:
            finish = inference_pb2.FINISH_REASON_STOP
        elif finish:
            text += self._rest()
        return Piece(text, (token_id,), (logprob,), finish)

    def take_end(self, finish: inference_pb2.FinishReason.ValueType) -> Piece:
        """An end that brings no new token."""
        return Piece(self._rest(), finish_reason=finish)

    def replay(self, token_ids: Sequence[int]) -> tuple[str, bool]:
        """Take tokens that were delivered before; the text that went with them, and whether it ended there."""
        pieces = []
        for token_id in token_ids:
            text, stopped = self._add(token_id)
            pieces.append(text)
            if stopped:
                return "".join(pieces), True
        return "".join(pieces), False

    def _add(self, token_id: int) -> tuple[str, bool]:
        if token_id in self._end_ids:  # ended by the model
            return "", False
        result = self._stops.push(self._detokenizer.add(token_id))
        return result.text, result.stopped

    def _rest(self) -> str:
        result = self._stops.push(self._detokenizer.flush())
        return result.text if result.stopped else result.text + self._stops.flush()
