"""What a simulated model generates: a function of model, seed, prompt and all tokens before, as a real one is."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

STOP = 0
"""Ends a request where it is generated."""
_STOPS_ONE_IN = 97


@dataclass(frozen=True)
class Wish:
    """What a client wants.

    Attributes:
        name: For people.
        prompt: Its tokens.
        seed: Of the sampling.
        max_tokens: Most tokens.
        stops: Whether the model may stop by itself.
        text_stop: A text that ends the request stands behind so many tokens; 0 where there is none.
    """

    name: str
    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    text_stop: int = 0
    stops: bool = True


class Model:
    """A model with one request's prompt and sampling."""

    def __init__(self, digest: str, wish: Wish, prompt: Sequence[int]) -> None:
        self._stops = wish.stops
        self._base = zlib.crc32(f"{digest} {wish.seed} {list(prompt)}".encode())

    def next(self, generated: Sequence[int]) -> int:
        """The token behind those generated; another one where any of the last few, or their number, is another."""
        value = self._base ^ (len(generated) * 0x9E3779B1 & 0xFFFFFFFF)
        for token in generated[-3:]:
            value = (value * 31 + token * 0x85EBCA6B + 7) & 0xFFFFFFFF
        value ^= value >> 15
        return STOP if self._stops and value % _STOPS_ONE_IN == 0 else 1 + value % 50_000


class Truth:
    """What a request must come to, computed apart from all heads."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tokens: list[int] = []

    def at(self, index: int) -> int:
        """The token at a position."""
        while len(self._tokens) <= index:
            self._tokens.append(self._model.next(self._tokens))
        return self._tokens[index]
