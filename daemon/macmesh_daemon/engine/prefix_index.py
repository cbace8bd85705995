"""Finished requests' caches that are kept, by their tokens. Pure."""

import array
import collections
import dataclasses
from collections.abc import Iterator, Sequence

_ITEM_BYTES = 4


def packed(tokens: Sequence[int]) -> bytes:
    """Tokens as bytes, `_ITEM_BYTES` each, which compare at the speed of memory."""
    return array.array("I", tokens).tobytes()


def common_prefix(one: bytes, other: bytes) -> int:
    """How many tokens two packed sequences have in common at their beginning."""
    left, right = memoryview(one), memoryview(other)
    low, high = 0, min(len(one), len(other)) // _ITEM_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        part = slice(low * _ITEM_BYTES, middle * _ITEM_BYTES)
        if left[part] == right[part]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclasses.dataclass(frozen=True)
class Entry:
    """Kept caches."""

    number: int
    tokens: int
    """Tokens in them."""
    packed: bytes
    reserve_tokens: int
    """Tokens that they are allocated for."""
    prefill: bool
    """They never decoded, so windows may be as wide as prefill steps left them."""


class PrefixIndex:
    """The kept entries, the one that was used longest ago first."""

    def __init__(self) -> None:
        self._entries: collections.OrderedDict[int, Entry] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def add(self, entry: Entry) -> None:
        """Keeps an entry, as the one used last."""
        self._entries[entry.number] = entry

    def remove(self, number: int) -> None:
        """Drops an entry."""
        del self._entries[number]

    def longest(self, prompt: Sequence[int], trim_below_tokens: int | None) -> tuple[Entry, int] | None:
        """The entry that saves most of a prompt, and how many tokens of it stay; None where none does.

        One token of the prompt is always left to run.

        Args:
            prompt: The tokens.
            trim_below_tokens: Up to which length caches can be cut back; None: any.
        """
        wanted = packed(prompt)
        best: tuple[Entry, int] | None = None
        for entry in self:
            tokens = min(common_prefix(entry.packed, wanted), len(prompt) - 1)
            if tokens < entry.tokens and not can_cut(entry.tokens, trim_below_tokens):
                continue
            if tokens > 0 and (best is None or tokens >= best[1]):
                best = entry, tokens
        return best


def can_cut(length: int, trim_below_tokens: int | None) -> bool:
    """Whether caches of that length can be cut back."""
    return trim_below_tokens is None or length <= trim_below_tokens
